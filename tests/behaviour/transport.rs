//! Transport: whom the runner believes to be the service, the proxies on the way, and where it never goes.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread;
use std::time::Duration;

use crate::support::project::{Project, fake_project, fake_project_with_settings};
use crate::support::proxy::Proxy;
use crate::support::runner::{Ended, Runner};
use crate::support::secure::Secure;
use crate::support::server::{Endpoint, Fault, Job, KEY, Server};
use crate::support::tls::{Authority, Identity, TlsFront, Validity};
use crate::support::wait::pause;

/// For what is a matter of milliseconds.
const SOON: Duration = Duration::from_secs(30);
/// For what starts an interpreter and waits for polls.
const LATER: Duration = Duration::from_secs(60);

/// One round against this URL: 0 if the service was reached. A failure is not tried again.
fn round<'a>(project: &'a Project, url: &str) -> Runner<'a> {
    Runner::in_project(project)
        .arg("--once")
        .env("DJANGOCOMMAND_SERVER_URL", url)
        .env("DJANGOCOMMAND_API_KEY", KEY)
        .env("DJANGOCOMMAND_MAX_RETRIES", "0")
}

fn reaches(runner: Runner<'_>) -> Ended {
    let ended = runner.run_to_end(LATER);
    assert_eq!(ended.code(), Some(0), "{ended:?}");
    ended
}

#[test]
fn a_certificate_is_checked_against_the_bundle_that_a_setting_or_variable_names() {
    let (secure, project) = (Secure::start(), fake_project());
    let directory = secure.path("certs");
    fs::create_dir(&directory).unwrap();
    fs::write(format!("{directory}/README"), "Notes beside them are no certificates.").unwrap();
    fs::write(format!("{directory}/other.pem"), Authority::new().pem()).unwrap();
    std::os::unix::fs::symlink(secure.path("ca.pem"), format!("{directory}/9d2f8e.0")).unwrap();
    let file = secure.path("ca.pem");
    for variable in ["DJANGOCOMMAND_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"] {
        for (path, count) in [(&file, 1), (&directory, 2)] {
            let before = secure.requests();
            let ended = reaches(round(&project, &secure.url()).env(variable, path));
            assert!(secure.requests() > before);
            let route = format!(
                "the service is reached directly, its certificate checked against the {count} certificate(s) in \
                 '{path}' ({variable})"
            );
            assert!(ended.stderr.contains(&route), "{route}: {ended:?}");
        }
    }
    // The first that is named counts, and an empty one counts as none.
    for (first, second) in [
        ("DJANGOCOMMAND_CA_BUNDLE", "REQUESTS_CA_BUNDLE"),
        ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
        ("CURL_CA_BUNDLE", "SSL_CERT_FILE"),
    ] {
        reaches(round(&project, &secure.url()).env(first, &file).env(second, "/nowhere"));
        reaches(round(&project, &secure.url()).env(first, "").env(second, &file));
    }
}

#[test]
fn a_bundle_can_be_named_in_the_django_settings_as_a_path_and_under_the_renamed_services_prefix() {
    let secure = Secure::start();
    for prefix in ["DJANGOCOMMAND_", "MANAGECOMMAND_"] {
        let project = fake_project_with_settings(&format!(
            "import pathlib\nfor name in dir():\n    if name.startswith('DJANGOCOMMAND_'):\n        del globals()[name]\n\
             {prefix}CA_BUNDLE = pathlib.Path({:?})\n{prefix}API_KEY = {KEY:?}\n{prefix}SERVER_URL = {:?}",
            secure.path("ca.pem"),
            secure.front.url("localhost"),
        ));
        let ended = reaches(Runner::in_project(&project).arg("--once"));
        let said = format!("{prefix}CA_BUNDLE = {} (Django settings)", secure.path("ca.pem"));
        assert!(ended.stderr.contains(&said), "{ended:?}");
    }
    assert!(secure.requests() > 0);
}

#[test]
fn a_bundle_that_cannot_be_used_is_an_error_that_names_it_and_nothing_is_sent() {
    let (secure, project) = (Secure::start(), fake_project());
    let path = |name: &str| secure.path(name);
    let begin = "-----BEGIN CERTIFICATE-----\n";
    fs::write(path("empty"), "").unwrap();
    fs::write(path("text"), "no certificates here").unwrap();
    fs::write(path("garbage"), format!("{}{begin}<html>\n", secure.authority.pem())).unwrap();
    fs::write(
        path("hello"),
        format!("{}{begin}aGVsbG8=\n{}", secure.authority.pem(), begin.replace("BEGIN", "END")),
    )
    .unwrap();
    fs::create_dir(path("nothing")).unwrap();
    fs::create_dir(path("mixed")).unwrap();
    fs::copy(path("ca.pem"), path("mixed/a.pem")).unwrap();
    fs::copy(path("garbage"), path("mixed/b.pem")).unwrap();
    thread::scope(|scope| {
        for (name, why) in [
            ("missing", "No such file"),
            ("empty", "no certificate in PEM form is there"),
            ("text", "no certificate in PEM form is there"),
            ("nothing", "no certificate in PEM form is there"),
            ("garbage", "what it holds is no PEM"),
            ("hello", "what stands between BEGIN CERTIFICATE and END CERTIFICATE is none"),
            ("mixed", "/mixed/b.pem': what it holds is no PEM"),
        ] {
            for variable in ["DJANGOCOMMAND_CA_BUNDLE", "CURL_CA_BUNDLE"] {
                let runner = round(&project, &secure.url()).env(variable, path(name));
                scope.spawn(move || {
                    let ended = runner.run_to_end(LATER);
                    assert_eq!(ended.code(), Some(78), "{ended:?}");
                    let said = format!("/{name}', which {variable} names, cannot be used: ");
                    assert!(ended.stderr.contains(&said) && ended.stderr.contains(why), "{ended:?}");
                });
            }
        }
        let relative = round(&project, &secure.url()).env("DJANGOCOMMAND_CA_BUNDLE", "ca.pem");
        let ended = relative.run_to_end(LATER);
        assert_eq!(ended.code(), Some(78));
        assert!(
            ended.stderr.contains("'ca.pem' (environment), but must be the absolute path of"),
            "{ended:?}"
        );
    });
    assert_eq!(secure.requests(), 0);
}

#[test]
fn a_server_that_cannot_prove_who_it_is_hears_nothing_and_the_error_says_why() {
    let (secure, project) = (Secure::start(), fake_project());
    let front = |identity| TlsFront::start(identity, secure.server.address());
    let certified = |names: &[&str], validity| front(secure.authority.certify(names, validity));
    let roots = format!("the 1 certificate(s) in '{}' (SSL_CERT_FILE)", secure.path("ca.pem"));
    let unknown =
        format!("UnknownIssuer; the certificate of '127.0.0.1' is signed by none of {roots}: if it is");
    let stranger = Authority::called("stranger").certify(&["127.0.0.1"], Validity::Now);
    let namesake = Authority::new().certify(&["127.0.0.1"], Validity::Now);
    let unsigned =
        format!("BadSignature; the certificate of '127.0.0.1' is signed by none of {roots}: if it is");
    let mut old = Vec::new();
    thread::scope(|scope| {
        for (front, said) in [
            (front(stranger), &*unknown),
            (front(namesake), &*unsigned),
            (front(Identity::self_signed(&["127.0.0.1"])), &*unknown),
            (
                certified(&["127.0.0.1"], Validity::Expired),
                "either the clock of this host is wrong, or '127.0.0.1' needs a new certificate",
            ),
            (certified(&["127.0.0.1"], Validity::NotYet), "certificate not valid yet: "),
            (
                certified(&["service.example"], Validity::Now),
                "only valid for DnsName(\"service.example\"); is '127.0.0.1' in DJANGOCOMMAND_SERVER_URL the name",
            ),
        ] {
            let runner = round(&project, &front.url("127.0.0.1")).env("SSL_CERT_FILE", secure.path("ca.pem"));
            scope.spawn(move || fails_saying(runner, said));
        }
        // Without a bundle it is the built-in roots that do not know it.
        let built_in = "signed by none of the built-in roots: if it is the right one, name a file with its issuer's in \
                        DJANGOCOMMAND_CA_BUNDLE";
        let runner = round(&project, &secure.url());
        scope.spawn(move || fails_saying(runner, built_in));
        for answer in [TLS_1_1_ALERT, TLS_1_1_HELLO] {
            let (url, thread) = answers_tls_with(answer);
            old.push(thread);
            let runner = round(&project, &url);
            scope.spawn(move || fails_saying(runner, "'127.0.0.1' must offer TLS 1.2 or 1.3"));
        }
        let (url, thread) = answers_tls_with(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n");
        old.push(thread);
        let runner = round(&project, &url);
        scope.spawn(move || fails_saying(runner, "what answers at '127.0.0.1' speaks no TLS"));
    });
    for thread in old {
        let hello = thread.join().unwrap();
        assert!(!String::from_utf8_lossy(&hello).contains(KEY));
    }
    assert_eq!(secure.requests(), 0);
}

#[test]
fn no_option_turns_the_checking_off() {
    let project = fake_project();
    for option in ["--insecure", "-k", "--no-verify", "--verify=false", "--no-check-certificate"] {
        let ended = Runner::in_project(&project).arg(option).run_to_end(SOON);
        assert_eq!(ended.code(), Some(2), "{ended:?}");
    }
    let help = Runner::in_project(&project).arg("--help").run_to_end(SOON).stdout.to_lowercase();
    for word in ["insecure", "verify", "certificate"] {
        assert!(!help.contains(word), "{help}");
    }
}

/// A fatal alert, `protocol_version`, in a record of TLS 1.1.
const TLS_1_1_ALERT: &[u8] = &[21, 3, 2, 0, 2, 2, 70];
/// The beginning of a `ServerHello` of TLS 1.1 with a cipher of its time: version, random, no session, no extension.
const TLS_1_1_HELLO: &[u8] = &[
    22, 3, 2, 0, 42, 2, 0, 0, 38, 3, 2, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19,
    20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 0, 0, 47, 0,
];

/// A server that has one answer to every beginning of TLS, and the bytes that it was sent before its first.
fn answers_tls_with(answer: &'static [u8]) -> (String, thread::JoinHandle<Vec<u8>>) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let thread = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut bytes = vec![0; 4096];
        let count = stream.read(&mut bytes).unwrap();
        stream.write_all(answer).unwrap();
        bytes.truncate(count);
        // Until it is closed.
        drop(stream.read_to_end(&mut bytes));
        bytes
    });
    (url, thread)
}

fn fails_saying(runner: Runner<'_>, said: &str) {
    let ended = runner.run_to_end(LATER);
    assert_eq!(ended.code(), Some(1), "{ended:?}");
    assert!(ended.stderr.contains(said), "{said:?} is not in {ended:?}");
}

#[test]
fn a_request_goes_through_the_proxy_of_its_scheme_lower_case_first() {
    let (secure, project) = (Secure::start(), fake_project());
    let plain = Server::start();
    let to_plain = "http://service.example:8000";
    let to_secure = format!("https://localhost:{}", secure.front.address().port());
    for (url, target, variables) in [
        (to_plain, plain.address(), &[("http_proxy", true), ("HTTP_PROXY", false), ("all_proxy", false)][..]),
        (to_plain, plain.address(), &[("HTTP_PROXY", true), ("all_proxy", false), ("https_proxy", false)]),
        (to_plain, plain.address(), &[("ALL_PROXY", true), ("HTTPS_PROXY", false)]),
        (&to_secure, secure.front.address(), &[("https_proxy", true), ("HTTPS_PROXY", false)]),
        (
            &to_secure,
            secure.front.address(),
            &[("all_proxy", true), ("ALL_PROXY", false), ("http_proxy", false)],
        ),
    ] {
        let (right, wrong) = (Proxy::to(target), Proxy::to(target));
        let mut runner = round(&project, url)
            .env("SSL_CERT_FILE", secure.path("ca.pem"))
            .env("DJANGOCOMMAND_ALLOW_HTTP_HOSTS", "service.example");
        for (name, is_right) in variables {
            let proxy = if *is_right { &right } else { &wrong };
            // A host and port alone are as good as a URL.
            runner = runner.env(name, proxy.address().to_string());
        }
        let ended = reaches(runner);
        let host = url.split_once("://").unwrap().1;
        let heads = right.heads();
        assert!(!heads.is_empty() && wrong.heads().is_empty(), "{variables:?}");
        for head in heads {
            assert!(head.starts_with(&format!("CONNECT {host} HTTP/1.1\r\n")), "{head}");
            assert!(!head.contains(KEY) && !head.to_lowercase().contains("\r\nauthorization:"), "{head}");
        }
        let route = format!("through the proxy {} ({})", right.address(), variables[0].0);
        assert!(ended.stderr.contains(&route), "{route}: {ended:?}");
    }
}

#[test]
fn user_and_password_reach_the_proxy_and_nobody_else() {
    let (server, project) = (Server::start(), fake_project());
    // us er:p@ss
    let proxy = Proxy::guarded(server.address(), "dXMgZXI6cEBzcw==");
    let id = server.enqueue(Job::new("echo"));
    let named = |user: &str| format!("http://{user}@{}/", proxy.address());
    let runner = round(&project, "http://service.example:8000")
        .env("DJANGOCOMMAND_ALLOW_HTTP_HOSTS", "service.example")
        .args(["-v", "3"]);
    let ended = reaches(runner.env("http_proxy", named("us%20er:p%40ss")));
    assert!(server.state(|state| state.execution(&id).completed.is_some()));
    for secret in ["p%40ss", "p@ss", "us%20er"] {
        assert!(!ended.stderr.contains(secret), "{ended:?}");
    }
    let runner = round(&project, "http://service.example:8000")
        .env("DJANGOCOMMAND_ALLOW_HTTP_HOSTS", "service.example")
        .env("http_proxy", named("user:wrong"));
    let before = server.state(|state| state.requests.len());
    fails_saying(
        runner,
        &format!(
            "proxy server responded 407/407; the way goes through the proxy {} (http_proxy); it wants a user and password",
            proxy.address()
        ),
    );
    assert_eq!(server.state(|state| state.requests.len()), before);
}

#[test]
fn no_proxy_exempts_by_name_address_range_and_port() {
    let (server, project) = (Server::start(), fake_project());
    let port = server.address().port();
    let by_name = format!("http://localhost:{port}");
    thread::scope(|scope| {
        for (url, list, is_exempt) in [
            (&server.url(), "other.example, 127.0.0.1".to_owned(), true),
            (&server.url(), format!("127.0.0.1:{port}"), true),
            (&server.url(), "10.0.0.0/8,127.0.0.0/8".to_owned(), true),
            (&server.url(), "127.0.0.1:1,127.0.0.2,126.0.0.0/8,0.0.1".to_owned(), false),
            (&by_name, "LOCALHOST".to_owned(), true),
            (&by_name, format!(".localhost:{port}"), true),
            (&by_name, "*".to_owned(), true),
            (&by_name, "host,alhost,localhost.example,127.0.0.1,localhost:1".to_owned(), false),
        ] {
            let (project, server, url) = (&project, &server, url.clone());
            scope.spawn(move || {
                for name in ["no_proxy", "NO_PROXY"] {
                    let proxy = Proxy::to(server.address());
                    let through = format!("http://{}", proxy.address());
                    reaches(round(project, &url).env("http_proxy", through).env(name, &list));
                    assert_eq!(proxy.heads().is_empty(), is_exempt, "{url} {name}={list}");
                }
            });
        }
    });
}

#[test]
fn an_unusable_proxy_is_an_error_and_never_a_direct_connection() {
    let (server, project) = (Server::start(), fake_project());
    thread::scope(|scope| {
        for (name, value) in [
            ("http_proxy", "http://user:hunter2@proxy:99999"),
            ("http_proxy", "ftp://user:hunter2@proxy"),
            ("HTTP_PROXY", "http://"),
            ("all_proxy", "http://user:hunter2@pro xy"),
            ("ALL_PROXY", "http://proxy:hunter2"),
        ] {
            let runner = round(&project, &server.url()).env(name, value);
            scope.spawn(move || {
                let ended = runner.run_to_end(LATER);
                assert_eq!(ended.code(), Some(78), "{name}={value}: {ended:?}");
                let said =
                    format!("the value of {name} is no proxy that can be used: it must be a URL such as");
                assert!(ended.stderr.contains(&said) && !ended.stderr.contains("hunter2"), "{ended:?}");
            });
        }
        // A proxy that is not there.
        let gone = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap();
        for scheme in ["http", "socks5h"] {
            let runner =
                round(&project, &server.url()).env("http_proxy", format!("{scheme}://user:hunter2@{gone}"));
            scope.spawn(move || {
                fails_saying(runner, &format!("; the way goes through the proxy {gone} (http_proxy)"));
            });
        }
    });
    assert_eq!(server.state(|state| state.requests.len()), 0);
    // The lower case counts even when it is empty: that is how `requests` is told to use none.
    let ended =
        reaches(round(&project, &server.url()).env("http_proxy", "").env("HTTP_PROXY", "ftp://proxy"));
    assert!(ended.stderr.contains("the service is reached directly"), "{ended:?}");
}

#[test]
fn a_proxy_that_answers_byte_by_byte_does_not_hold_the_runner_up() {
    let (project, listener) = (fake_project(), TcpListener::bind(("127.0.0.1", 0)).unwrap());
    let address = listener.local_addr().unwrap();
    // It lives as long as the test program.
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut is_taken = stream.write_all(b"HTTP/1.1 200 OK\r\nX-Slow: ").is_ok();
            while is_taken {
                pause(Duration::from_millis(200));
                is_taken = stream.write_all(b"x").is_ok();
            }
        }
    });
    let runner = round(&project, "https://service.example")
        .env("https_proxy", address.to_string())
        .env("DJANGOCOMMAND_REQUEST_TIMEOUT", "2");
    fails_saying(runner, "no answer in time");
}

#[test]
fn no_redirect_takes_the_runner_to_another_host_or_path_or_to_a_file() {
    let (server, project) = (Server::start(), fake_project());
    let elsewhere = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    elsewhere.set_nonblocking(true).unwrap();
    let address = elsewhere.local_addr().unwrap();
    let targets = [
        format!("http://{address}/api/runner/heartbeat/"),
        format!("//{address}/"),
        "file:///etc/passwd".to_owned(),
        "/api/runner/elsewhere/".to_owned(),
        "../../elsewhere/?x=%0d%0a".to_owned(),
        format!("{}/api/runner/heartbeat/", server.url()),
    ];
    for (at, code) in [300, 301, 302, 303, 305, 307, 308].into_iter().enumerate() {
        server.next(Endpoint::Heartbeat, Fault::status_with(code, "Location", &targets[at % targets.len()]));
    }
    let runner = Runner::in_project(&project)
        .server(&server)
        .env("DJANGOCOMMAND_HEARTBEAT_INTERVAL", "5")
        .args(["-v", "3"])
        .start();
    server.wait_for("the heartbeat after all of them", LATER, |state| {
        state.of(Endpoint::Heartbeat).nth(7).map(drop)
    });
    runner.wait_for_log("connected", SOON);
    for target in &targets {
        runner.wait_for_log(&format!("redirects to '{target}', which is never followed"), SOON);
    }
    assert!(elsewhere.accept().is_err(), "somebody has followed");
    // The server itself calls any other path a violation.
    assert!(runner.stop(LATER).success());
}
