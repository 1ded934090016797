//! The way to the service: name, proxy, connection, TLS, clock, key, and whether the dashboard knows the commands.
//!
//! A name server or a peer may keep a system call waiting for longer than anybody wants to, so all of it happens in a
//! thread, which is left alone when the time is over.

use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use ureq::ProxyProtocol;

use super::host::Known;
use super::{Finding, Report, STEP_LIMIT};
use crate::api::{self, CLOCK_SKEW_MAX, Failure, Heartbeat, Trial};
use crate::config::Config;
use crate::sys::{self, Bond};
use crate::timer::{iso_8601, unix_now};

const CERTIFICATE_SCRIPT: &str = include_str!("certificate.py");
/// What a step that may be left out must leave of the time, which Python needs to begin and to end.
const RESERVE: Duration = Duration::from_secs(1);
/// How far a clock may be off before it is worth a word.
const SKEW_NOTICED: f64 = 30.0;
/// How long before its end a certificate is worth a word: whoever renews them by themselves does so earlier.
const CERTIFICATE_ENDS_SOON: f64 = 14.0 * 86_400.0;

/// Looks at every step of the way, in order, until `deadline`.
pub(super) fn look_at(known: Known, deadline: Instant, report: &mut Report) {
    let (sender, findings) = mpsc::channel();
    thread::spawn(move || Way { known, sender, deadline }.walk());
    loop {
        match findings.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(finding) => report.add(finding),
            Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => {
                return report.add(Finding::fail(
                    "network",
                    "nothing has come of the next step in time",
                    "look what comes after the last line above: a name server or a firewall that does not answer",
                ));
            }
        }
    }
}

struct Way {
    known: Known,
    sender: Sender<Finding>,
    deadline: Instant,
}

impl Way {
    fn walk(self) {
        let Known { config, client, .. } = &self.known;
        let Some(addresses) = self.look_up() else { return };
        let route = format!("{} is reached {}", config.server.as_str(), client.route());
        self.say(Finding::ok("route", route));
        if self.connect(&addresses) {
            self.try_key();
        }
    }

    /// Whoever wants to know may have gone, and then nobody does.
    fn say(&self, finding: Finding) {
        let _ = self.sender.send(finding);
    }

    fn look_up(&self) -> Option<Vec<SocketAddr>> {
        let (host, port) = self.known.client.first_hop();
        let began = Instant::now();
        match api::look_up(&host, port) {
            Ok(addresses) => {
                let shown: Vec<String> = addresses.iter().map(|address| address.ip().to_string()).collect();
                let text = format!("'{host}' is {} ({} ms)", shown.join(", "), began.elapsed().as_millis());
                self.say(Finding::ok("dns", text));
                Some(addresses)
            }
            Err(error) => {
                let next = "is the name right, and does /etc/resolv.conf name a server that answers?";
                self.say(Finding::fail("dns", format!("cannot look up '{host}': {error}"), next));
                None
            }
        }
    }

    /// Whether one of the addresses takes a connection.
    fn connect(&self, addresses: &[SocketAddr]) -> bool {
        let mut refusals = Vec::new();
        for address in addresses {
            let began = Instant::now();
            match TcpStream::connect_timeout(address, STEP_LIMIT) {
                Ok(_) => {
                    let text = format!("{address} takes connections ({} ms)", began.elapsed().as_millis());
                    self.say(Finding::ok("tcp", text));
                    return true;
                }
                Err(error) => refusals.push(format!("{address}: {error}")),
            }
        }
        let next = "a firewall, a wrong port, or nobody listens there; is a proxy needed (https_proxy)?";
        self.say(Finding::fail("tcp", refusals.join("; "), next));
        false
    }

    fn try_key(&self) {
        let Known { facts, config, client, catalogue, .. } = &self.known;
        let trial = client.try_out(&facts.python_version, &facts.django_version, &catalogue.hash);
        let has_tls = config.server.is_https() && trial.is_answered;
        if has_tls {
            self.say(Finding::ok("tls", format!("the certificate of '{}' is good", config.server.host())));
        }
        // What is not the service may say any time.
        if let Some(finding) = clock(&trial).filter(|_| !is_unreachable(&trial.result)) {
            self.say(finding);
        }
        match &trial.result {
            Ok(heartbeat) => said(heartbeat).into_iter().for_each(|finding| self.say(finding)),
            Err(failure) => self.say(not_accepted(failure, trial.is_answered, config)),
        }
        // The last step, because it is the least: without time for it, it is left out.
        let left = self.deadline.saturating_duration_since(Instant::now()).saturating_sub(RESERVE);
        if has_tls && left > RESERVE {
            self.say(certificate_end(&self.known, left.min(STEP_LIMIT)));
        }
    }
}

fn is_unreachable<T>(result: &Result<T, Failure>) -> bool {
    matches!(result, Err(Failure::Unreachable { .. }))
}

fn certificate_end(known: &Known, limit: Duration) -> Finding {
    match ask_certificate(known, limit) {
        Err(why) => Finding::ok("tls", format!("when the certificate ends could not be seen: {why}")),
        Ok(end) => {
            let days = (end - unix_now()) / 86_400.0;
            let text = format!("the certificate ends on {} (in {days:.0} days)", iso_8601(end));
            if end - unix_now() < CERTIFICATE_ENDS_SOON {
                Finding::warn("tls", text, "whoever runs the service must renew it before that")
            } else {
                Finding::ok("tls", text)
            }
        }
    }
}

/// When the server's certificate ends, in Unix seconds, by the project's Python.
fn ask_certificate(known: &Known, limit: Duration) -> Result<f64, String> {
    let Known { project, config, client, .. } = known;
    let proxy = client.proxy();
    // To another kind of proxy Python would speak in clear, user and password included.
    if proxy.is_some_and(|proxy| proxy.protocol() != ProxyProtocol::Http) {
        return Err("Python knows no way through such a proxy".to_owned());
    }
    let proxy = proxy.map(|proxy| {
        let (user, password) = (proxy.username(), proxy.password());
        serde_json::json!({"host": proxy.host(), "port": proxy.port(), "user": user, "password": password})
    });
    let server = &config.server;
    let question = serde_json::json!({
        "host": server.host(), "port": server.port(), "proxy": proxy, "timeout": limit.as_secs_f64() / 2.0,
    });
    let mut command = Command::new(&project.python);
    command.args(["-I", "-c", CERTIFICATE_SCRIPT]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    sys::isolate(&mut command, Bond::DiesWithParent);
    let mut child = command.spawn().map_err(|e| e.to_string())?;
    if let Some(mut stdin) = child.stdin.take() {
        // If it has ended already, what it printed says why.
        let _ = stdin.write_all(question.to_string().as_bytes());
    }
    let output = child.wait_with_output().map_err(|e| e.to_string())?;
    let printed = String::from_utf8_lossy(&output.stdout);
    printed.trim().parse().map_err(|_| {
        let words = String::from_utf8_lossy(&output.stderr);
        words.trim().lines().last().unwrap_or("Python said nothing").to_owned()
    })
}

fn clock(trial: &Trial) -> Option<Finding> {
    let behind = trial.clock_behind?;
    let text = match behind {
        _ if behind.abs() <= SKEW_NOTICED => {
            return Some(Finding::ok("clock", "it is the service's, give or take a second or two"));
        }
        0.0.. => format!("it is {behind:.0} s behind the service's"),
        _ => format!("it is {:.0} s ahead of the service's", -behind),
    };
    let next =
        "let the host set its clock (NTP): the service refuses requests whose time is far from its own";
    let is_too_far = behind.abs() > CLOCK_SKEW_MAX.as_secs_f64();
    Some(if is_too_far { Finding::fail("clock", text, next) } else { Finding::warn("clock", text, next) })
}

fn said(heartbeat: &Heartbeat) -> Vec<Finding> {
    let mut findings = vec![Finding::ok("auth", "the service accepts the key")];
    findings.push(if heartbeat.commands_in_sync {
        Finding::ok("sync", "the dashboard has the commands as they are here")
    } else {
        Finding::warn(
            "sync",
            "the dashboard has other commands than there are here",
            "a runner tells it of them: start one",
        )
    });
    if let Some(reason) = &heartbeat.suspended {
        let text = format!("the service has suspended this runner: {reason}");
        findings.push(Finding::warn(
            "suspended",
            text,
            "see the dashboard: nothing is run until it is resumed",
        ));
    }
    findings
}

fn not_accepted(failure: &Failure, is_answered: bool, config: &Config) -> Finding {
    let text = failure.to_string();
    match failure {
        Failure::Denied { .. } => Finding::fail(
            "auth",
            text,
            "compare the key with the project's in the dashboard; was it revoked?",
        ),
        _ if is_answered => Finding::fail(
            "service",
            text,
            "is SERVER_URL the service's, with nothing in between? Or try again later",
        ),
        _ if config.server.is_https() && text.contains("certificate") => {
            Finding::fail("tls", text, "nothing is sent to a server whose certificate is not good")
        }
        _ => Finding::fail(
            "service",
            text,
            "what takes the connection does not go on as the service would: look at proxies and firewalls on the way, and at the port",
        ),
    }
}
