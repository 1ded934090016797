//! From a host's name to its addresses, which are remembered for a while.

use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

use super::proxy;
use crate::sys;

/// A poll every 2 s would be 43,000 pairs of DNS queries a day.
const ADDRESSES_FRESH: Duration = Duration::from_secs(60);

/// Looks names up without a thread, remembers the answer, and asks for IPv4 alone where the usual question fails.
#[derive(Default)]
pub(super) struct Addresses {
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
        let port =
            uri.port_u16().unwrap_or_else(|| proxy::default_port(uri.scheme_str().unwrap_or_default()));
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

/// Asks for the addresses of a host.
///
/// # Errors
/// The name is not known, or no name server answers.
pub fn look_up(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let addresses: Vec<SocketAddr> = match (bare, port).to_socket_addrs() {
        Ok(found) => found.collect(),
        // If that fails too, the first error is the one that users can look up.
        Err(error) => sys::lookup_ipv4(host, port).map_err(|_| error)?,
    };
    if addresses.is_empty() { Err(io::Error::other("the name has no address")) } else { Ok(addresses) }
}
