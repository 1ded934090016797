//! TLS before a server of the tests: a certificate authority of one's own, and a front that takes TLS off.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, SystemTime};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection};

const DAY: Duration = Duration::from_secs(86_400);

/// When a certificate is valid.
#[derive(Clone, Copy)]
pub(crate) enum Validity {
    Now,
    Expired,
    NotYet,
    /// In two days.
    EndsSoon,
}

/// Signs certificates.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// What a server shows and proves.
pub(crate) struct Identity {
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        Authority::called("root of the tests")
    }

    /// One whose certificate has this name. Another of the same name has another key.
    pub(crate) fn called(name: &str) -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Authority { issuer: Issuer::new(params, key), pem }
    }

    /// Its own certificate, which is the root to trust.
    pub(crate) fn pem(&self) -> &str {
        &self.pem
    }

    /// A server's certificate for these names and addresses.
    pub(crate) fn certify(&self, names: &[&str], validity: Validity) -> Identity {
        let key = KeyPair::generate().unwrap();
        let certificate = params(names, validity).signed_by(&key, &self.issuer).unwrap();
        Identity { certificate: certificate.der().clone(), key: private(&key) }
    }
}

impl Identity {
    /// Signed by nobody but itself.
    pub(crate) fn self_signed(names: &[&str]) -> Self {
        let key = KeyPair::generate().unwrap();
        let certificate = params(names, Validity::Now).self_signed(&key).unwrap();
        Identity { certificate: certificate.der().clone(), key: private(&key) }
    }
}

fn params(names: &[&str], validity: Validity) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    let year = |year| date_time_ymd(year, 1, 1);
    (params.not_before, params.not_after) = match validity {
        Validity::Now => (year(2000), year(4000)),
        Validity::Expired => (year(2000), year(2001)),
        Validity::NotYet => (year(3999), year(4000)),
        Validity::EndsSoon => (year(2000), (SystemTime::now() + 2 * DAY).into()),
    };
    params
}

fn private(key: &KeyPair) -> PrivateKeyDer<'static> {
    PrivatePkcs8KeyDer::from(key.serialize_der()).into()
}

/// A port where TLS is taken off; what is inside goes on to another port.
pub(crate) struct TlsFront {
    address: SocketAddr,
}

impl TlsFront {
    pub(crate) fn start(identity: Identity, inside: SocketAddr) -> Self {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![identity.certificate], identity.key)
            .unwrap();
        let config = Arc::new(config);
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        // It lives as long as the test program, like its connections: each ends with the peer's.
        thread::spawn(move || {
            for stream in listener.incoming() {
                let config = Arc::clone(&config);
                thread::spawn(move || relay(&stream.unwrap(), config, inside));
            }
        });
        TlsFront { address }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL by this name, which must lead to 127.0.0.1.
    pub(crate) fn url(&self, host: &str) -> String {
        format!("https://{host}:{}", self.address.port())
    }
}

/// Carries bytes both ways until one side closes. Errors are the client's business: it sees the same.
fn relay(outside: &TcpStream, config: Arc<ServerConfig>, inside: SocketAddr) {
    let inside = TcpStream::connect(inside).unwrap();
    let tls = Mutex::new(ServerConnection::new(config).unwrap());
    thread::scope(|scope| {
        scope.spawn(|| {
            drop(inward(outside, &tls, &inside));
            drop(inside.shutdown(Shutdown::Both));
        });
        drop(outward(&inside, &tls, outside));
        drop(outside.shutdown(Shutdown::Both));
    });
}

fn inward(mut outside: &TcpStream, tls: &Mutex<ServerConnection>, mut inside: &TcpStream) -> io::Result<()> {
    let mut bytes = [0; 16 * 1024];
    loop {
        let count = outside.read(&mut bytes)?;
        if count == 0 {
            return Ok(());
        }
        let mut rest = &bytes[..count];
        while !rest.is_empty() {
            let mut tls = tls.lock().unwrap();
            tls.read_tls(&mut rest)?;
            let state = tls.process_new_packets();
            // An alert says why.
            flush(&mut tls, outside)?;
            let ready = state.map_err(io::Error::other)?.plaintext_bytes_to_read();
            let mut plain = vec![0; ready];
            tls.reader().read_exact(&mut plain)?;
            drop(tls);
            inside.write_all(&plain)?;
        }
    }
}

fn outward(mut inside: &TcpStream, tls: &Mutex<ServerConnection>, outside: &TcpStream) -> io::Result<()> {
    let mut bytes = [0; 16 * 1024];
    loop {
        let count = inside.read(&mut bytes)?;
        let mut tls = tls.lock().unwrap();
        if count == 0 {
            tls.send_close_notify();
            return flush(&mut tls, outside);
        }
        tls.writer().write_all(&bytes[..count])?;
        flush(&mut tls, outside)?;
    }
}

fn flush(tls: &mut ServerConnection, mut outside: &TcpStream) -> io::Result<()> {
    while tls.wants_write() {
        tls.write_tls(&mut outside)?;
    }
    Ok(())
}
