//! A runner's side of the protocol over a bare socket, for the tests of the server.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::SOON;
use crate::support::server::{KEY, Server, fresh_uuid_v4};

/// A client that keeps the protocol's headers right and its own bodies and order as wrong as a test wants.
pub(super) struct Caller {
    pub(super) stream: TcpStream,
}

impl Caller {
    pub(super) fn new(server: &Server) -> Self {
        let stream = TcpStream::connect(server.url().strip_prefix("http://").unwrap()).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        Caller { stream }
    }

    /// A caller whose first heartbeat went well.
    pub(super) fn proven(server: &Server) -> Self {
        let mut caller = Caller::new(server);
        assert_eq!(caller.heartbeat("sha256:none")["ok"], true);
        caller
    }

    pub(super) fn heartbeat(&mut self, hash: &str) -> Value {
        let (status, answer) = self.post("heartbeat/", &heartbeat_body(hash)).unwrap();
        assert_eq!(status, 200);
        answer
    }

    pub(super) fn post(&mut self, path: &str, body: &Value) -> io::Result<(u16, Value)> {
        self.call(&head("POST", path, &fresh_uuid_v4(), KEY), &body.to_string())
    }

    pub(super) fn get(&mut self, path: &str) -> io::Result<(u16, Value)> {
        self.call(&head("GET", path, &fresh_uuid_v4(), KEY), "")
    }

    pub(super) fn start(&mut self, id: &str) -> u16 {
        let head = head("POST", &format!("executions/{id}/start/"), &fresh_uuid_v4(), KEY);
        self.call(&head, "").unwrap().0
    }

    pub(super) fn output(&mut self, id: &str, number: u64, is_stderr: bool, segments: &Value) -> u16 {
        let body = json!({"chunk_number": number, "segments": segments, "is_stderr": is_stderr});
        self.post(&format!("executions/{id}/output/"), &body).unwrap().0
    }

    pub(super) fn complete(&mut self, id: &str, exit_code: i64, status: &str) -> io::Result<(u16, Value)> {
        let body = json!({"exit_code": exit_code, "status": status});
        self.post(&format!("executions/{id}/complete/"), &body)
    }

    pub(super) fn call(&mut self, head: &str, body: &str) -> io::Result<(u16, Value)> {
        let text = format!("{head}Content-Length: {}\r\n\r\n{body}", body.len());
        self.stream.write_all(text.as_bytes())?;
        let (status, body) = self.answer()?;
        Ok((status, serde_json::from_str(&body).unwrap_or(Value::String(body))))
    }

    pub(super) fn answer(&mut self) -> io::Result<(u16, String)> {
        let mut bytes = Vec::new();
        loop {
            let mut part = [0; 4096];
            let count = self.stream.read(&mut part)?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            bytes.extend_from_slice(&part[..count]);
            let mut headers = [httparse::EMPTY_HEADER; 16];
            let mut response = httparse::Response::new(&mut headers);
            let Ok(httparse::Status::Complete(head)) = response.parse(&bytes) else { continue };
            let length = response.headers.iter().find(|header| header.name == "Content-Length").unwrap();
            let length: usize = str::from_utf8(length.value).unwrap().parse().unwrap();
            if bytes.len() >= head + length {
                let body = String::from_utf8(bytes[head..head + length].to_vec()).unwrap();
                return Ok((response.code.unwrap(), body));
            }
        }
    }
}

pub(super) fn head(method: &str, path: &str, nonce: &str, key: &str) -> String {
    let now = unix_now() as u64;
    format!(
        "{method} /api/runner/{path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n\
         Authorization: Bearer {key}\r\nX-Request-Nonce: {nonce}\r\nX-Request-Timestamp: {now}\r\n"
    )
}

pub(super) fn heartbeat_body(hash: &str) -> Value {
    json!({"runner_version": "0.0", "python_version": "3.0", "django_version": "5.0", "commands_hash": hash})
}

pub(super) fn unix_now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

pub(super) fn line(text: &str) -> Value {
    json!([{"timestamp": unix_now(), "content": text}])
}

/// Asserts that the server has noted one breach for each of the texts, in their order, and takes them.
pub(super) fn assert_blamed(server: &Server, texts: &[&str]) {
    let violations = server.take_violations();
    assert_eq!(violations.len(), texts.len(), "{violations:#?} instead of {texts:#?}");
    for (violation, text) in violations.iter().zip(texts) {
        assert!(violation.contains(text), "{violation:?} does not say {text:?}");
    }
}

pub(super) fn commands() -> Value {
    json!([
        {"name": "migrate", "app_label": "django.core", "help_text": "usage: \"x\" \\ / \u{7f}\u{8}\u{c}\t\r\n\u{1f}"},
        {"name": "check", "app_label": "django.core", "help_text": "ä → 🦄 \u{2028} \u{ffff}",
         "bound_args": [{"label": "é", "args": "--deploy"}]},
        {"name": "Zulu", "app_label": "zulu", "help_text": ""},
    ])
}
