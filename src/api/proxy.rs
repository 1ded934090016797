//! Which proxy the service is reached through, by the rules of Python's `requests`.
//!
//! The variables are those that every HTTP client knows. One whose value cannot be used is an error: to go around it
//! would show the request to whom it was to be kept from.

use std::net::IpAddr;

use ureq::http::Uri;
use ureq::{Proxy, ProxyProtocol};

use crate::config::{Environment, ServerUrl};

/// The proxy for this server, and which variable names it: `https_proxy` or `http_proxy` by the URL's scheme, else
/// `all_proxy`; none if `no_proxy` names the host.
///
/// # Errors
/// The value is no URL of a proxy. It may hold a password, so the message does not quote it.
pub(super) fn find(server: &ServerUrl, environment: &Environment) -> Result<Option<(Proxy, String)>, String> {
    let by_scheme = if server.is_https() { "https_proxy" } else { "http_proxy" };
    let Some((name, value)) = variable(by_scheme, environment).or_else(|| variable("all_proxy", environment))
    else {
        return Ok(None);
    };
    let exempt = environment.get("no_proxy").or_else(|| environment.get("NO_PROXY"));
    if exempt.is_some_and(|list| is_exempt(server.host(), server.port(), list)) {
        return Ok(None);
    }
    match parse(value) {
        Some(proxy) => Ok(Some((proxy, name))),
        None => Err(format!(
            "the value of {name} is no proxy that can be used: it must be a URL such as 'http://proxy.example:3128' or \
             'http://user:password@proxy.example:3128' (http, https, socks4, socks4a, socks5 or socks5h; special \
             characters in user and password as %XX); to reach the service without a proxy, empty {name} or add the \
             host to no_proxy"
        )),
    }
}

/// The variable in lower case, even if it is empty, which hides the other; else the one in upper case.
fn variable<'a>(name: &str, environment: &'a Environment) -> Option<(String, &'a str)> {
    let upper = name.to_ascii_uppercase();
    let name = if environment.has(name) { name.to_owned() } else { upper };
    environment.get(&name).map(|value| (name, value))
}

fn parse(value: &str) -> Option<Proxy> {
    let url = if value.contains("://") { value.to_owned() } else { format!("http://{value}") };
    let authority = url.parse::<Uri>().ok()?.into_parts().authority?;
    // A port that is no number is as good as none for `Uri`, and the default would be another proxy.
    let host_and_port = authority.as_str().rsplit('@').next().unwrap_or_default();
    let port_is_good = host_and_port == authority.host() || authority.port_u16().is_some_and(|port| port > 0);
    (port_is_good && !authority.host().is_empty()).then(|| Proxy::new(&url).ok())?
}

/// The port where a proxy's URL names none.
pub(super) fn default_port(scheme: &str) -> u16 {
    match ProxyProtocol::try_from(scheme) {
        Ok(ProxyProtocol::Http) => 80,
        Ok(ProxyProtocol::Https) | Err(_) => 443,
        Ok(_) => 1080,
    }
}

/// Whether a `no_proxy` list names the host: itself, a domain above it, the address or a range with it, each with or
/// without a port; or `*`, which is every host.
fn is_exempt(host: &str, port: u16, list: &str) -> bool {
    let list = list.replace(' ', "").to_ascii_lowercase();
    let address: Option<IpAddr> = host.parse().ok();
    list.split(',').filter(|entry| !entry.is_empty()).any(|entry| match address {
        _ if entry == "*" => true,
        Some(address) => is_address_in(address.to_canonical(), port, entry),
        None => {
            let name = entry.trim_start_matches('*').trim_start_matches('.');
            let name = name.strip_suffix(&format!(":{port}")).unwrap_or(name);
            !name.is_empty() && (host == name || host.ends_with(&format!(".{name}")))
        }
    })
}

/// `10.0.0.1`, `10.0.0.1:8000`, `10.0.0.0/8`, `::1`, `[::1]`, `[::1]:8000` or `fd00::/8`.
fn is_address_in(address: IpAddr, port: u16, entry: &str) -> bool {
    if let Some((network, bits)) = entry.split_once('/') {
        let (Ok(network), Ok(bits)) = (network.parse(), bits.parse()) else { return false };
        return is_in_network(address, network, bits);
    }
    let bare = |text: &str| text.trim_start_matches('[').trim_end_matches(']').parse() == Ok(address);
    bare(entry) || entry.strip_suffix(&format!(":{port}")).is_some_and(bare)
}

fn is_in_network(address: IpAddr, network: IpAddr, bits: u32) -> bool {
    match (address, network) {
        (IpAddr::V4(address), IpAddr::V4(network)) if bits <= 32 => {
            let differing = address.to_bits() ^ network.to_bits();
            differing.checked_shr(32 - bits).unwrap_or(0) == 0
        }
        (IpAddr::V6(address), IpAddr::V6(network)) if bits <= 128 => {
            let differing = address.to_bits() ^ network.to_bits();
            differing.checked_shr(128 - bits).unwrap_or(0) == 0
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_proxy_names_hosts_domains_addresses_and_ranges() {
        for (host, list, exempt) in [
            ("a.example.com", "example.com", true),
            ("a.example.com", " other , .example.com", true),
            ("example.com", ".EXAMPLE.com", true),
            ("badexample.com", "example.com", false),
            ("a.example.com", "*", true),
            ("a.example.com", "*.example.com", true),
            ("a.example.com", "example.com:8000", true),
            ("a.example.com", "example.com:80", false),
            ("a.example.com", "a.example.com.org,10.0.0.0/8", false),
            ("127.0.0.1", "127.0.0.1,localhost", true),
            ("127.0.0.10", "127.0.0.1", false),
            ("127.0.0.1", "0.0.1", false),
            ("127.0.0.1", "127.0.0.1:8000", true),
            ("127.0.0.1", "127.0.0.1:80", false),
            ("10.1.2.3", "10.0.0.0/8", true),
            ("10.1.2.3", "10.1.2.128/25,10.1.2.2/31", true),
            ("10.1.2.3", "10.1.2.4/31,10.1.2.3/33,10.1.2.3/,/8,10.0.0.0/-1", false),
            ("10.1.2.3", "0.0.0.0/0", true),
            ("::1", "::1", true),
            ("::1", "[::1]", true),
            ("::1", "[::1]:8000", true),
            ("::1", "0:0:0:0:0:0:0:1", true),
            ("fd00::7", "fd00::/8", true),
            ("fe80::7", "fd00::/8,0.0.0.0/0", false),
            ("::ffff:10.0.0.1", "10.0.0.0/8", true),
            ("a", ",.,", false),
        ] {
            assert_eq!(is_exempt(host, 8000, list), exempt, "{host} in {list:?}");
        }
    }

    #[test]
    fn a_value_is_a_url_of_a_known_scheme_with_a_port_that_can_be_connected_to() {
        for (value, host, port) in [
            ("proxy.example:3128", "proxy.example", 3128),
            ("http://proxy.example", "proxy.example", 80),
            ("http://us%40er:p%3Aw@[::1]:3128/", "[::1]", 3128),
            ("https://proxy.example", "proxy.example", 443),
            ("socks5h://proxy.example", "proxy.example", 1080),
        ] {
            let proxy = parse(value).unwrap();
            assert_eq!((proxy.host(), proxy.port()), (host, port), "{value}");
            assert!(port == 3128 || port == default_port(proxy.uri().scheme_str().unwrap()));
        }
        let proxy = parse("http://us%40er:p%3Aw@proxy").unwrap();
        assert_eq!((proxy.username(), proxy.password()), (Some("us@er"), Some("p:w")));
        for wrong in [
            "http://",
            "://proxy",
            "ftp://proxy",
            "http://proxy:99999",
            "http://proxy:0",
            "http://proxy:port",
            "http://proxy:",
            "http://:3128",
            "http://user:pass@",
            "http://pro xy:3128",
            "http://u:%ff@proxy:3128",
        ] {
            assert!(parse(wrong).is_none(), "{wrong}");
        }
    }
}
