//! A proxy of the tests: takes `CONNECT`, notes what it was asked, and leads to one place whatever was named.

use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::{io, thread};

pub(crate) struct Proxy {
    address: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    /// Lets everybody in and leads to `target`.
    pub(crate) fn to(target: SocketAddr) -> Self {
        Proxy::start(target, None)
    }

    /// Lets in who shows these credentials, `user:password` in Base64.
    pub(crate) fn guarded(target: SocketAddr, credentials: &str) -> Self {
        Proxy::start(target, Some(format!("\r\nProxy-Authorization: Basic {credentials}\r\n")))
    }

    fn start(target: SocketAddr, wanted: Option<String>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let heads = Arc::new(Mutex::new(Vec::new()));
        let (of_threads, wanted) = (Arc::clone(&heads), Arc::new(wanted));
        // It lives as long as the test program, like its connections: each ends with the peer's.
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (heads, wanted) = (Arc::clone(&of_threads), Arc::clone(&wanted));
                thread::spawn(move || serve(&stream.unwrap(), target, wanted.as_deref(), &heads));
            }
        });
        Proxy { address, heads }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Every head of a request that it was sent, in order.
    pub(crate) fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }
}

fn serve(client: &TcpStream, target: SocketAddr, wanted: Option<&str>, heads: &Mutex<Vec<String>>) {
    let mut reader = BufReader::new(client);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).unwrap_or(0) == 0 {
            return;
        }
    }
    heads.lock().unwrap().push(head.clone());
    // What follows is sent only after our answer, so the reader holds nothing of it.
    let mut to_client = client;
    let is_let_in = wanted.is_none_or(|line| head.contains(line));
    if !head.starts_with("CONNECT ") || !is_let_in {
        let refusal = "HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n";
        drop(to_client.write_all(refusal.as_bytes()));
        return;
    }
    let Ok(server) = TcpStream::connect(target) else { return };
    drop(to_client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n"));
    thread::scope(|scope| {
        scope.spawn(|| carry(client, &server));
        carry(&server, client);
    });
}

fn carry(mut from: &TcpStream, mut to: &TcpStream) {
    drop(io::copy(&mut from, &mut to));
    drop(to.shutdown(Shutdown::Both));
}
