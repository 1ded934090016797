//! How bytes get to the server: one agent with kept-alive connections, an own resolver, proxy and certificates.
//!
//! Nothing is followed or retried here, and nothing has a time limit of its own but the whole request and the
//! connection.

use std::fmt;
use std::fs;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use ureq::http::{Request, Response, Uri};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig};
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};
use ureq::{Agent, AsSendBody, Body, Proxy};

use crate::config::{Environment, ServerUrl};
use crate::sys;

/// A dead IPv6 route must not use up the time of the whole request.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A poll every 2 s would be 43,000 pairs of DNS queries a day.
const ADDRESSES_FRESH: Duration = Duration::from_secs(60);
/// ureq's default of 128 KiB a buffer is half a megabyte of memory for no more speed.
const BUFFER: usize = 16 * 1024;
/// Where `requests` looks for the name of a certificate bundle, and then OpenSSL.
const CA_VARIABLES: [&str; 3] = ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"];

/// A whole answer, whatever its status.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Vec<u8>,
    pub(super) retry_after: Option<String>,
    pub(super) location: Option<String>,
    /// When the server says that it is, as it wrote it.
    pub(super) date: Option<String>,
}

/// No answer.
pub(super) struct Error {
    pub(super) cause: String,
    /// The connection was closed or reset before an answer came, as happens when the server had just closed it.
    pub(super) stale: bool,
}

impl Error {
    pub(super) fn of(cause: impl Into<String>) -> Self {
        Self { cause: cause.into(), stale: false }
    }
}

pub(super) struct Transport {
    agent: Agent,
    route: String,
}

impl Transport {
    pub(super) fn new(
        server: &ServerUrl,
        timeout: Duration,
        environment: &Environment,
    ) -> Result<Self, String> {
        let proxy = proxy(server, environment)?;
        let (roots, roots_from) = roots(environment)?;
        let mut route = proxy.as_ref().map_or_else(
            || "directly".to_owned(),
            |proxy| format!("through the proxy {}:{}", proxy.host(), proxy.port()),
        );
        if server.is_https() {
            route.push_str(&format!(", certificates checked against {roots_from}"));
        }
        let config = Agent::config_builder()
            .timeout_global(Some(timeout))
            .timeout_connect(Some(CONNECT_TIMEOUT.min(timeout)))
            .http_status_as_error(false)
            // With 0 the redirect itself is the answer: following it would carry the key elsewhere.
            .max_redirects(0)
            .https_only(server.is_https())
            .proxy(proxy)
            .tls_config(TlsConfig::builder().root_certs(roots).build())
            .user_agent(concat!("djangocommand/", env!("CARGO_PKG_VERSION")))
            .input_buffer_size(BUFFER)
            .output_buffer_size(BUFFER)
            .build();
        Ok(Self {
            agent: Agent::with_parts(config, DefaultConnector::default(), Addresses::default()),
            route,
        })
    }

    pub(super) fn route(&self) -> &str {
        &self.route
    }

    /// Sends one request, `POST` if there is a body. `fresh` asks for a new connection.
    pub(super) fn send(
        &self,
        url: &str,
        headers: &[(&str, String)],
        body: Option<&str>,
        fresh: bool,
        answer_max: u64,
    ) -> Result<Answer, Error> {
        let mut request = Request::builder().uri(url);
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        let sent = match body {
            Some(body) => request.method("POST").body(body).map(|request| self.run(request, fresh)),
            None => request.method("GET").body(()).map(|request| self.run(request, fresh)),
        };
        let mut response = sent.map_err(|e| Error::of(e.to_string()))?.map_err(|e| self.explain(&e))?;
        let header = |name: &str| {
            let value = response.headers().get(name)?;
            Some(String::from_utf8_lossy(value.as_bytes()).into_owned())
        };
        let (retry_after, location, date) = (header("retry-after"), header("location"), header("date"));
        let status = response.status().as_u16();
        let body =
            response.body_mut().with_config().limit(answer_max).read_to_vec().map_err(|e| match e {
                ureq::Error::BodyExceedsLimit(_) => {
                    Error::of(format!("the answer is longer than {answer_max} bytes"))
                }
                other => Error::of(format!("the answer was cut short: {}", self.explain(&other).cause)),
            })?;
        Ok(Answer { status, body, retry_after, location, date })
    }

    fn run(&self, request: Request<impl AsSendBody>, fresh: bool) -> Result<Response<Body>, ureq::Error> {
        let mut request = self.agent.configure_request(request);
        if fresh {
            request = request.max_idle_age(Duration::ZERO);
        }
        self.agent.run(request.build())
    }

    fn explain(&self, error: &ureq::Error) -> Error {
        match error {
            ureq::Error::Timeout(what) => Error::of(format!("no answer in time ({what})")),
            ureq::Error::Io(io) => {
                let kinds =
                    [io::ErrorKind::UnexpectedEof, io::ErrorKind::BrokenPipe, io::ErrorKind::ConnectionReset];
                let hint = if io.to_string().contains("UnknownIssuer") {
                    format!("; the certificates are checked against: {}", self.route)
                } else {
                    String::new()
                };
                Error { cause: format!("{io}{hint}"), stale: kinds.contains(&io.kind()) }
            }
            other => Error::of(other.to_string()),
        }
    }
}

/// The proxy that `requests` would take: `https_proxy` or `http_proxy` by the URL's scheme, then `all_proxy`, lower
/// case first, unless `no_proxy` names the host.
fn proxy(server: &ServerUrl, environment: &Environment) -> Result<Option<Proxy>, String> {
    let either_case =
        |name: &str| environment.get(name).or_else(|| environment.get(&name.to_ascii_uppercase()));
    let by_scheme = if server.is_https() { "https_proxy" } else { "http_proxy" };
    let Some(value) = either_case(by_scheme).or_else(|| either_case("all_proxy")) else { return Ok(None) };
    if either_case("no_proxy").is_some_and(|list| is_exempt(server.host(), list)) {
        return Ok(None);
    }
    let url = if value.contains("://") { value.to_owned() } else { format!("http://{value}") };
    // The value may hold a password, so it is not quoted.
    Proxy::new(&url)
        .map(Some)
        .map_err(|_| format!("the proxy that {by_scheme} or all_proxy names is no URL that can be used"))
}

/// Whether a `no_proxy` list names the host: itself, a domain above it, or `*`.
fn is_exempt(host: &str, list: &str) -> bool {
    list.split(',').map(|entry| entry.trim().to_ascii_lowercase()).filter(|entry| !entry.is_empty()).any(
        |entry| {
            let name = entry.trim_start_matches('*').trim_start_matches('.');
            entry == "*" || host == name || host.ends_with(&format!(".{name}"))
        },
    )
}

fn roots(environment: &Environment) -> Result<(RootCerts, String), String> {
    let named = CA_VARIABLES.iter().find_map(|name| Some((*name, environment.get(name)?)));
    let Some((variable, path)) = named else {
        return Ok((RootCerts::WebPki, "the built-in roots".to_owned()));
    };
    let unusable =
        |why: String| format!("the certificates '{path}' that {variable} names cannot be used: {why}");
    let pem = fs::read(path).map_err(|e| unusable(e.to_string()))?;
    let mut certificates: Vec<Certificate<'static>> = Vec::new();
    for item in ureq::tls::parse_pem(&pem) {
        if let PemItem::Certificate(certificate) = item.map_err(|e| unusable(e.to_string()))? {
            certificates.push(certificate);
        }
    }
    if certificates.is_empty() {
        return Err(unusable("no certificate is in it".to_owned()));
    }
    Ok((RootCerts::new_with_certs(&certificates), format!("'{path}' ({variable})")))
}

/// Looks names up without a thread, remembers the answer, and asks for IPv4 alone where the usual question fails.
#[derive(Default)]
struct Addresses {
    known: Mutex<Option<Known>>,
}

struct Known {
    host_and_port: String,
    addresses: Vec<SocketAddr>,
    since: Instant,
}

impl fmt::Debug for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Addresses")
    }
}

impl Resolver for Addresses {
    fn resolve(
        &self,
        uri: &Uri,
        _: &ureq::config::Config,
        _: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let host = uri.host().ok_or(ureq::Error::HostNotFound)?;
        let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("http") { 80 } else { 443 });
        let host_and_port = format!("{host}:{port}");
        let mut known = self.known.lock().map_err(|_| ureq::Error::HostNotFound)?;
        let same = known.as_ref().filter(|known| known.host_and_port == host_and_port);
        let addresses = match same {
            Some(known) if known.since.elapsed() < ADDRESSES_FRESH => known.addresses.clone(),
            _ => match look_up(host, port) {
                Ok(addresses) => {
                    *known =
                        Some(Known { host_and_port, addresses: addresses.clone(), since: Instant::now() });
                    addresses
                }
                // Where the name led to before is a better guess than nowhere.
                Err(error) => match same {
                    Some(known) => known.addresses.clone(),
                    None => {
                        return Err(ureq::Error::Io(io::Error::other(format!(
                            "cannot look up '{host}': {error}"
                        ))));
                    }
                },
            },
        };
        let mut resolved = self.empty();
        // The array holds 16.
        addresses.into_iter().take(16).for_each(|address| resolved.push(address));
        Ok(resolved)
    }
}

fn look_up(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let addresses: Vec<SocketAddr> = match format!("{host}:{port}").to_socket_addrs() {
        Ok(found) => found.collect(),
        // If that fails too, the first error is the one that users can look up.
        Err(error) => sys::lookup_ipv4(host, port).map_err(|_| error)?,
    };
    if addresses.is_empty() { Err(io::Error::other("the name has no address")) } else { Ok(addresses) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_proxy_names_hosts_and_domains() {
        for (host, list, exempt) in [
            ("a.example.com", "example.com", true),
            ("a.example.com", " other , .example.com", true),
            ("example.com", ".EXAMPLE.com", true),
            ("badexample.com", "example.com", false),
            ("a.example.com", "*", true),
            ("a.example.com", "*.example.com", true),
            ("127.0.0.1", "127.0.0.1,localhost", true),
            ("127.0.0.10", "127.0.0.1", false),
            ("a", "", false),
        ] {
            assert_eq!(is_exempt(host, list), exempt, "{host} in {list:?}");
        }
    }
}
