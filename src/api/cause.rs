//! Why a connection failed, in words that say what to do about it.
//!
//! The types of the TLS library are hidden behind the HTTP client's, so what kind an error is shows in its text only.

use std::fmt;

use crate::execution::shortened;

/// How much of an error's own text is kept, in characters: a certificate may list a thousand names.
const TEXT_MAX: usize = 300;

/// How the service is reached, which is what most errors are about.
pub(super) struct Route {
    pub(super) host: String,
    /// Host, port and the variable that names it.
    pub(super) proxy: Option<String>,
    /// What the roots are called, where there is TLS.
    pub(super) roots: Option<String>,
    /// What the names of the settings begin with.
    pub(super) prefix: &'static str,
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.proxy {
            None => f.write_str("directly")?,
            Some(proxy) => write!(f, "through the proxy {proxy}")?,
        }
        self.roots.as_ref().map_or(Ok(()), |roots| write!(f, ", its certificate checked against {roots}"))
    }
}

impl Route {
    /// What to say of a request that got no answer.
    pub(super) fn explain(&self, error: &ureq::Error) -> String {
        let text = match error {
            ureq::Error::Timeout(what) => format!("no answer in time ({what})"),
            ureq::Error::Io(io) => io.to_string(),
            other => other.to_string(),
        };
        let mut said = shortened(&text, TEXT_MAX);
        if let Some(proxy) = &self.proxy {
            said.push_str(&format!("; the way goes through the proxy {proxy}"));
        }
        said + &self.hint(&text).map_or_else(String::new, |hint| format!("; {hint}"))
    }

    fn hint(&self, text: &str) -> Option<String> {
        let Self { host, roots, prefix, .. } = self;
        let has = |part: &str| text.contains(part);
        if has("proxy server responded 407") {
            return Some("it wants a user and password, in the URL of that variable".to_owned());
        }
        let roots = roots.as_ref()?;
        // A root that was made anew under the old name has another key.
        let hint = if has("UnknownIssuer") || has("BadSignature") {
            format!(
                "the certificate of '{host}' is signed by none of {roots}: if it is the right one, name a file with its \
                 issuer's in {prefix}CA_BUNDLE"
            )
        } else if has("certificate expired") || has("certificate not valid yet") {
            format!("either the clock of this host is wrong, or '{host}' needs a new certificate")
        } else if has("certificate not valid for name") {
            format!("is '{host}' in {prefix}SERVER_URL the name that the service has its certificate for?")
        } else if has("invalid peer certificate") {
            format!("'{host}' needs another certificate; nothing is sent to it until then")
        } else if has("alert: ProtocolVersion")
            || has("Tls12")
            || has("TlsVersion")
            || has("UnknownProtocolVersion")
        {
            format!("'{host}' must offer TLS 1.2 or 1.3")
        } else if has("InvalidContentType") {
            format!("what answers at '{host}' speaks no TLS; is the port in {prefix}SERVER_URL right?")
        } else {
            return None;
        };
        Some(hint)
    }
}
