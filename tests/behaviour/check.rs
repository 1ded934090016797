//! `check`: each thing that keeps a runner from working has its line, with what to do about it.

use std::fs::{self, File, Permissions};
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::project::{Project, django_project, fake_project, fake_project_with_settings};
use crate::support::proxy::Proxy;
use crate::support::runner::{Ended, Runner};
use crate::support::secure::Secure;
use crate::support::server::{Endpoint, Fault, KEY, Server};
use crate::support::state_dir::StateDir;
use crate::support::tls::{Authority, TlsFront, Validity};

/// For what starts an interpreter or two.
const SOON: Duration = Duration::from_secs(30);
/// How long it may take, whatever hangs.
const TIME_MAX: Duration = Duration::from_secs(15);

#[test]
fn a_project_that_is_ready_gets_ok_for_each_step_and_exit_code_0() {
    let (server, project) = (Server::start(), django_project());
    let ended = check(&project).server(&server).run_to_end(SOON);
    assert_eq!(ended.code(), Some(0), "{ended:?}");
    let root = project.dir().display();
    for line in [
        &*format!("ok    project     '{root}': manage.py is there\n"),
        "bin/python', from $VIRTUAL_ENV\n",
        "' is this user's alone\n",
        "ok    runner      none is running",
        "ok    django      Django 5.2",
        "ok    key         DJANGOCOMMAND_API_KEY = dc_******** (environment)\n",
        "ok    setting     DJANGOCOMMAND_HEARTBEAT_INTERVAL = 30 s (default)\n",
        "ok    policy      15 of the project's 35 commands may run: those that are listed\n",
        "ok    dns         '127.0.0.1' is 127.0.0.1 (",
        "is reached directly\n",
        "ok    tcp         127.0.0.1:",
        "ok    clock       it is the service's",
        "ok    auth        the service accepts the key\n",
        "warn  sync        the dashboard has other commands than there are here\n                  -> a runner tells",
        "\n0 failed, ",
    ] {
        assert!(ended.stdout.contains(line), "{line:?} is not in\n{}", ended.stdout);
    }
    assert!(!ended.stdout.contains(KEY) && ended.stderr.is_empty(), "{ended:?}");
    // It is a heartbeat and nothing else, as the runner would send it.
    server.state(|state| {
        assert_eq!(state.requests.len(), state.of(Endpoint::Heartbeat).count(), "{}", state.log())
    });
    let state = StateDir::new();
    let runner = Runner::in_project(&project).server(&server).state_dir(&state).start();
    runner.wait_for_log("told the service of", SOON);
    let ended = check(&project).server(&server).state_dir(&state).run_to_end(SOON);
    assert!(
        ended.stdout.contains("ok    sync        the dashboard has the commands as they are here"),
        "{ended:?}"
    );
    assert!(ended.stdout.contains(&format!("ok    runner      running (PID {})", runner.pid())), "{ended:?}");
}

#[test]
fn arguments_that_are_left_open_are_warned_of_and_bound_ones_listed() {
    let project = django_project();
    project.settings(
        "DJANGOCOMMAND_ALLOWED_COMMANDS = ['check', 'test', 'dumpdata', 'migrate', 'clearsesions', 'loaddata']\n\
         DJANGOCOMMAND_METADATAONLY_COMMANDS = ['gone']\n\
         DJANGOCOMMAND_BOUND_COMMANDS = {'migrate': ['--plan', {'args': '', 'label': 'All'}], 'flush': ['']}",
    );
    let ended = offline(&project).run_to_end(SOON);
    assert_eq!(ended.code(), Some(0), "{ended:?}");
    for line in [
        "warn  policy      DJANGOCOMMAND_ALLOWED_COMMANDS names 'clearsesions', which the project does not have; did you \
         mean 'clearsessions'?\n                  -> correct it or take it out of DJANGOCOMMAND_ALLOWED_COMMANDS\n",
        "warn  policy      DJANGOCOMMAND_METADATAONLY_COMMANDS names 'gone', which the project does not have\n",
        "warn  policy      dumpdata may run with any arguments, and its arguments may name files or code (-o/--output)\n",
        "warn  policy      loaddata may run with any arguments, and its arguments may name files or code (fixture)\n",
        "warn  policy      test may run with any arguments, and it imports and runs the code of whatever directory",
        "                  -> bind it to certain arguments in DJANGOCOMMAND_BOUND_COMMANDS, or leave it out of DJANGOCOMMAND_ALLOWED_COMMANDS\n",
        "ok    policy      migrate may run with exactly: --plan | All\n",
        "warn  policy      'flush' is bound to certain arguments, but may not run at all\n",
        "warn  policy      a command does not load: broken: ",
    ] {
        assert_eq!(ended.stdout.contains(line), !line.contains("broken"), "{line:?} in\n{}", ended.stdout);
    }
    assert!(!ended.stdout.contains("policy      check may"), "{}", ended.stdout);
    project.settings("DJANGOCOMMAND_USE_BLOCKLIST = True\nDJANGOCOMMAND_DISALLOWED_COMMANDS = ['shel']");
    let ended = offline(&project).run_to_end(SOON);
    for line in [
        "commands may run: all that are not listed, new ones too\n",
        "DISALLOWED_COMMANDS names 'shel', which the project does not have; did you mean 'shell'?\n",
        "warn  policy      shell may run with any arguments, and it runs whatever code it is given\n",
        "warn  policy      a command does not load: broken: ",
    ] {
        assert!(ended.stdout.contains(line), "{line:?} is not in\n{}", ended.stdout);
    }
}

#[test]
fn what_is_wrong_on_the_host_fails_with_what_to_do_and_nothing_is_sent() {
    let server = Server::start();
    let broken = fake_project_with_settings("raise RuntimeError('no database today')");
    fails(
        check(&broken).server(&server),
        &[
            "fail  django      the project does not load: RuntimeError: no database today\n",
            "                  -> 'manage.py check' with this Python must work first",
            "warn  network     not looked at, because project and settings are not known yet\n",
        ],
    );
    let mistyped = fake_project_with_settings(
        "DJANGOCOMMAND_HEARTBEAT_INTERVAL = '30'\nDJANGOCOMMAND_ALOWED_COMMANDS = []\nDJANGOCOMMAND_API_KEY = 'x'",
    );
    fails(
        check(&mistyped).server(&server).env_remove("DJANGOCOMMAND_API_KEY"),
        &[
            "fail  key         DJANGOCOMMAND_API_KEY is '********' (Django settings), but must be a text",
            "fail  setting     DJANGOCOMMAND_HEARTBEAT_INTERVAL is '30' (Django settings), but must be a number",
            "no setting of the runner; did you mean DJANGOCOMMAND_ALLOWED_COMMANDS?\n",
            "                  -> start ends with exit code 78 until this is mended\n",
            "ok    setting     DJANGOCOMMAND_MAX_RETRIES = 3 (default)\n",
        ],
    );
    let fine = fake_project();
    fails(
        check(&fine).server(&server).env_remove("DJANGOCOMMAND_API_KEY"),
        &["fail  key         DJANGOCOMMAND_API_KEY is not set: copy the project's key from the dashboard"],
    );
    fails(
        check(&fine).server(&server).arg("--python").arg("/nowhere/python"),
        &["fail  python      the Python '/nowhere/python' named by --python does not exist\n"],
    );
    fails(
        check(&fine).server(&server).env("http_proxy", "ftp://proxy"),
        &["fail  network     the value of http_proxy is no proxy that can be used"],
    );
    let state = StateDir::new();
    fs::set_permissions(state.path(), Permissions::from_mode(0o777)).unwrap();
    fails(
        check(&fine).server(&server).state_dir(&state).arg("--offline"),
        &[
            &format!(
                "fail  state       others can write to the state directory '{}'\n",
                state.path().display()
            ),
            "                  -> run chmod 700 on it\n",
        ],
    );
    server.state(|state| assert_eq!(state.requests.len(), 0, "{}", state.log()));
}

#[test]
fn what_start_would_refuse_of_directories_certificates_and_key_files_is_seen_offline() {
    let (server, fine) = (Server::start(), fake_project());
    let (open, state) = (TempDir::new().unwrap(), StateDir::new());
    fs::set_permissions(open.path(), Permissions::from_mode(0o777)).unwrap();
    let below = Runner::in_project(&fine).subcommand("check").without_state_dir().arg("--state-dir");
    fails(
        below.arg(open.path().join("later")).env("DJANGOCOMMAND_API_KEY", KEY).arg("--offline"),
        &[&format!("fail  state       everybody can write to '{}'", open.path().display())],
    );
    fs::create_dir(state.path().join("executions")).unwrap();
    fs::set_permissions(state.path().join("executions"), Permissions::from_mode(0o777)).unwrap();
    fails(
        check(&fine).server(&server).state_dir(&state).arg("--offline"),
        &["fail  state       others can write to"],
    );
    fails(
        check(&fine).server(&server).env("DJANGOCOMMAND_CA_BUNDLE", "/nonexistent").arg("--offline"),
        &[
            "fail  network     the certificates in '/nonexistent', which DJANGOCOMMAND_CA_BUNDLE names, cannot be used",
        ],
    );
    fails(
        check(&fine).server(&server).env("DJANGOCOMMAND_API_KEY_FILE", "dc_by_mistake").arg("--offline"),
        &[
            "fail  key         DJANGOCOMMAND_API_KEY_FILE is '********', but must be the absolute path of a file",
        ],
    );
    server.state(|state| assert_eq!(state.requests.len(), 0, "{}", state.log()));
}

#[test]
fn without_a_project_it_says_where_it_has_looked() {
    let project = fake_project();
    fs::remove_file(project.dir().join("manage.py")).unwrap();
    let line = format!("fail  project     no manage.py in '{}' or above it\n", project.dir().display());
    fails(
        check(&project),
        &[&line, "                  -> name the project with -C DIR, or its settings with --settings\n"],
    );
}

#[test]
fn root_is_warned_of_running_the_project_of_another_user() {
    let project = fake_project();
    if chown(project.dir(), Some(65_534), None).is_err() {
        return println!("NOT TESTED: whom root is warned of, because this is not root.");
    }
    let server = Server::start();
    let ended = check(&project).server(&server).run_to_end(SOON);
    let line = "warn  user        this is root, and the project belongs to user 65534: its commands can do anything on this host\n";
    assert!(ended.stdout.contains(line), "{ended:?}");
}

#[test]
fn what_the_service_says_against_the_key_the_clock_or_the_runner_has_its_line() {
    let (server, project) = (Server::start(), fake_project());
    fails(
        check(&project).server(&server).env("DJANGOCOMMAND_API_KEY", "dc_revoked"),
        &[
            "fail  auth        access denied: ",
            "                  -> compare the key with the project's in the dashboard",
        ],
    );
    server.take_violations();
    server.suspend("invoice is due");
    let ended = check(&project).server(&server).run_to_end(SOON);
    assert_eq!(ended.code(), Some(0), "{ended:?}");
    assert!(
        ended.stdout.contains("warn  suspended   the service has suspended this runner: invoice is due\n"),
        "{ended:?}"
    );
    server.resume();
    server.set_clock_ahead(95.0, || ());
    let ended = check(&project).server(&server).run_to_end(SOON);
    assert!(ended.stdout.contains("warn  clock       it is 9"), "{ended:?}");
    assert!(
        ended
            .stdout
            .contains(" s behind the service's\n                  -> let the host set its clock (NTP)"),
        "{ended:?}"
    );
    server.set_clock_ahead(-4005.0, || ());
    fails(check(&project).server(&server), &["fail  clock       it is 400", " s ahead of the service's\n"]);
    server.take_violations();
    server.set_clock_ahead(0.0, || ());
    server.always(Endpoint::Heartbeat, Fault::Body("<html>Log in to the hotel</html>".to_owned()));
    fails(check(&project).server(&server), &["fail  service     the server's answer is not the service's"]);
}

#[test]
fn the_way_to_the_service_is_shown_with_roots_proxy_and_the_end_of_the_certificate() {
    let (secure, project) = (Secure::start(), fake_project());
    let ours = |url: &str| {
        let runner = check(&project).env("DJANGOCOMMAND_SERVER_URL", url).env("DJANGOCOMMAND_API_KEY", KEY);
        runner.env("SSL_CERT_FILE", secure.path("ca.pem"))
    };
    let ended = ours(&secure.url()).run_to_end(SOON);
    assert_eq!(ended.code(), Some(0), "{ended:?}");
    let route = format!(
        "ok    route       {} is reached directly, its certificate checked against the 1 certificate(s) in '{}' \
         (SSL_CERT_FILE)\n",
        secure.url(),
        secure.path("ca.pem")
    );
    for line in [
        &*route,
        "ok    tls         the certificate of '127.0.0.1' is good\n",
        "ok    tls         the certificate ends on 4000-01-01",
    ] {
        assert!(ended.stdout.contains(line), "{line:?} is not in\n{}", ended.stdout);
    }
    let proxy = Proxy::guarded(secure.front.address(), "dXNlcjpwYSBzcw==");
    let ended = ours(&secure.url())
        .env("https_proxy", format!("http://user:pa%20ss@{}", proxy.address()))
        .run_to_end(SOON);
    assert_eq!(ended.code(), Some(0), "{ended:?}");
    let through = format!("is reached through the proxy 127.0.0.1:{} (https_proxy)", proxy.address().port());
    for line in [&*through, "the certificate ends on 4000-01-01"] {
        assert!(ended.stdout.contains(line), "{line:?} is not in\n{}", ended.stdout);
    }
    assert_eq!(proxy.heads().len(), 2, "one for the heartbeat, one for the certificate");
    assert!(!ended.stdout.contains("pa ss") && !ended.stdout.contains("pa%20ss"), "{ended:?}");
    // To a proxy behind TLS Python would show the password in clear, so it is not asked.
    let proxy_identity = secure.authority.certify(&["127.0.0.1"], Validity::Now);
    let by_tls = TlsFront::start(proxy_identity, proxy.address());
    let by_tls = by_tls.url("127.0.0.1").replace("https://", "https://user:pa%20ss@");
    let ended = ours(&secure.url()).env("https_proxy", by_tls).run_to_end(SOON);
    assert!(
        ended.stdout.contains("could not be seen: Python knows no way through such a proxy"),
        "{ended:?}"
    );
    assert_eq!(proxy.heads().len(), 3, "one more, for the heartbeat");
    let stranger = Authority::called("stranger").certify(&["127.0.0.1"], Validity::Now);
    let stranger = TlsFront::start(stranger, secure.server.address());
    fails(
        ours(&stranger.url("127.0.0.1")),
        &[
            "fail  tls         ",
            "UnknownIssuer; the certificate of '127.0.0.1' is signed by none of the 1 certificate(s)",
        ],
    );
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    fails(ours(&format!("https://{closed}")), &[&format!("fail  tcp         {closed}: Connection refused")]);
    fails(
        ours("https://no-such-host.invalid"),
        &["fail  dns         cannot look up 'no-such-host.invalid': "],
    );
}

#[test]
fn a_certificate_that_ends_soon_is_warned_of() {
    let (secure, project) = (Secure::start(), fake_project());
    let soon = TlsFront::start(
        secure.authority.certify(&["127.0.0.1"], Validity::EndsSoon),
        secure.server.address(),
    );
    let runner = check(&project).env("DJANGOCOMMAND_SERVER_URL", soon.url("127.0.0.1"));
    let ended =
        runner.env("DJANGOCOMMAND_API_KEY", KEY).env("SSL_CERT_FILE", secure.path("ca.pem")).run_to_end(SOON);
    let days = ["(in 1 days)", "(in 2 days)"].iter().any(|days| ended.stdout.contains(days));
    assert!(days && ended.stdout.contains("warn  tls         the certificate ends on 20"), "{ended:?}");
}

#[test]
fn it_ends_in_time_even_if_project_and_service_hang() {
    let (server, project) = (Server::start(), fake_project());
    let hanging = fake_project_with_settings("import time; time.sleep(60)");
    let began = Instant::now();
    fails(
        check(&hanging).server(&server),
        &["fail  django      the project has not loaded within 8 s (start waits up to 120 s)\n"],
    );
    assert!(began.elapsed() < TIME_MAX, "{:?}", began.elapsed());
    server.always(Endpoint::Heartbeat, Fault::Hang);
    let began = Instant::now();
    fails(check(&project).server(&server), &["fail  service     no answer in time"]);
    assert!(began.elapsed() < TIME_MAX, "{:?}", began.elapsed());
}

#[test]
fn offline_leaves_the_network_out_and_json_is_for_programs_and_nothing_is_changed() {
    let (server, project) = (Server::start(), fake_project());
    let state = project.dir().join("never/made");
    let runner = check(&project).server(&server).without_state_dir().arg("--state-dir").arg(&state);
    let ended = runner.args(["--offline", "--json"]).run_to_end(SOON);
    assert_eq!(ended.code(), Some(0), "{ended:?}");
    let report: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(report["result"], "ok", "{report:#}");
    let checks = report["checks"].as_array().unwrap();
    let names: Vec<&str> = checks.iter().map(|check| check["name"].as_str().unwrap()).collect();
    assert!(names.contains(&"project") && !names.contains(&"dns"), "{names:?}");
    assert!(checks.iter().all(|check| check["result"] == "ok" && check["next"].is_null()), "{report:#}");
    assert!(!state.exists() && !state.parent().unwrap().exists());
    server.state(|state| assert_eq!(state.requests.len(), 0, "{}", state.log()));
}

#[test]
fn a_reader_that_goes_away_is_no_failure_and_a_full_disk_is_one() {
    let project = fake_project();
    let full = File::options().write(true).open("/dev/full").unwrap();
    for args in [&["--offline"][..], &["--offline", "--json"]] {
        let run = |stdout: Stdio| {
            let mut command = offline(&project).args(args).command();
            let mut child = command.stdout(stdout).stderr(Stdio::piped()).spawn().unwrap();
            drop(child.stdout.take());
            child.wait_with_output().unwrap()
        };
        let ended = run(Stdio::piped());
        assert!(ended.status.success() && ended.stderr.is_empty(), "{ended:?}");
        let ended = run(full.try_clone().unwrap().into());
        assert_eq!(ended.status.code(), Some(1), "{ended:?}");
        assert!(
            String::from_utf8_lossy(&ended.stderr).contains("cannot write to standard output"),
            "{ended:?}"
        );
    }
}

fn check(project: &Project) -> Runner<'_> {
    Runner::in_project(project).subcommand("check").state_dir(&StateDir::new())
}

/// With a key and without a service.
fn offline(project: &Project) -> Runner<'_> {
    check(project).arg("--offline").env("DJANGOCOMMAND_API_KEY", KEY)
}

fn fails(runner: Runner<'_>, lines: &[&str]) -> Ended {
    let ended = runner.run_to_end(SOON);
    assert_eq!(ended.code(), Some(1), "{ended:?}");
    for line in lines {
        assert!(ended.stdout.contains(line), "{line:?} is not in\n{}", ended.stdout);
    }
    ended
}
