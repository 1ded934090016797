//! How bytes get to the server: one agent with kept-alive connections, an own resolver, proxy and certificates.
//!
//! Nothing is followed or retried here, and nothing has a time limit of its own but the whole request and the
//! connection.

use std::io;
use std::time::Duration;

use ureq::http::{Request, Response};
use ureq::tls::TlsConfig;
use ureq::unversioned::transport::{Connector, DefaultConnector};
use ureq::{Agent, AsSendBody, Body, Proxy};

use super::addresses::Addresses;
use super::cause::Route;
use super::punctual::Punctual;
use super::{proxy, roots};
use crate::config::{Config, Environment};

/// A dead IPv6 route must not use up the time of the whole request.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// ureq's default is 128 KiB for each. A chunk of output goes out by so many pieces, for each of which the service is woken;
/// what comes in is short.
const OUTPUT_BUFFER: usize = 64 * 1024;
const INPUT_BUFFER: usize = 16 * 1024;

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
    route: Route,
    target: (String, u16),
}

impl Transport {
    pub(super) fn new(config: &Config, environment: &Environment) -> Result<Self, String> {
        let Config { server, request_timeout: timeout, .. } = config;
        let (roots, roots_name) = roots::read(config.ca_bundle.as_ref())?;
        let proxy = proxy::find(server, environment)?;
        let route = Route {
            host: server.host().to_owned(),
            proxy: proxy.as_ref().map(|(proxy, from)| format!("{}:{} ({from})", proxy.host(), proxy.port())),
            roots: server.is_https().then_some(roots_name),
            prefix: config.policy.prefix,
        };
        let config = Agent::config_builder()
            .timeout_global(Some(*timeout))
            .timeout_connect(Some(CONNECT_TIMEOUT.min(*timeout)))
            .http_status_as_error(false)
            // With 0 the redirect itself is the answer: following it would carry the key elsewhere.
            .max_redirects(0)
            .https_only(server.is_https())
            .proxy(proxy.map(|(proxy, _)| proxy))
            .tls_config(TlsConfig::builder().root_certs(roots).build())
            .user_agent(concat!("djangocommand/", env!("CARGO_PKG_VERSION")))
            .input_buffer_size(INPUT_BUFFER)
            .output_buffer_size(OUTPUT_BUFFER)
            .build();
        Ok(Self {
            agent: Agent::with_parts(
                config,
                DefaultConnector::default().chain(Punctual),
                Addresses::default(),
            ),
            route,
            target: (server.host().to_owned(), server.port()),
        })
    }

    pub(super) fn route(&self) -> String {
        self.route.to_string()
    }

    pub(super) fn proxy(&self) -> Option<&Proxy> {
        self.agent.config().proxy()
    }

    /// Host and port of what is connected to.
    pub(super) fn first_hop(&self) -> (String, u16) {
        match self.proxy() {
            Some(proxy) => (proxy.host().to_owned(), proxy.port()),
            None => self.target.clone(),
        }
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
        let kinds = [io::ErrorKind::UnexpectedEof, io::ErrorKind::BrokenPipe, io::ErrorKind::ConnectionReset];
        let stale = matches!(error, ureq::Error::Io(io) if kinds.contains(&io.kind()));
        Error { cause: self.route.explain(error), stale }
    }
}
