//! The service behind TLS, with a certificate that a root of the tests has signed.

use std::fs;

use tempfile::TempDir;

use super::server::Server;
use super::tls::{Authority, TlsFront, Validity};

/// A server behind TLS, and the root that its certificate leads to, in `ca.pem`.
pub(crate) struct Secure {
    pub(crate) server: Server,
    pub(crate) front: TlsFront,
    pub(crate) authority: Authority,
    pub(crate) files: TempDir,
}

impl Secure {
    pub(crate) fn start() -> Self {
        let (server, authority) = (Server::start(), Authority::new());
        let identity = authority.certify(&["127.0.0.1", "localhost"], Validity::Now);
        let front = TlsFront::start(identity, server.address());
        let files = TempDir::new().unwrap();
        fs::write(files.path().join("ca.pem"), format!("# A root of the tests\n{}", authority.pem()))
            .unwrap();
        Secure { server, front, authority, files }
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.files.path().join(name).to_str().unwrap().to_owned()
    }

    pub(crate) fn url(&self) -> String {
        self.front.url("127.0.0.1")
    }

    pub(crate) fn requests(&self) -> usize {
        self.server.state(|state| state.requests.len())
    }
}
