//! Configuration: where each value comes from, what is refused before any network, what of it the log says.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::project::{Project, fake_project, fake_project_with_settings};
use crate::support::runner::{Ended, Runner};
use crate::support::server::{Endpoint, Fault, Job, KEY, Server, State};

/// For what starts an interpreter or two.
const SOON: Duration = Duration::from_secs(30);
/// For what waits for a poll as well.
const LATER: Duration = Duration::from_secs(60);

/// Commands of which some are in the default allowlist, one is in the default blocklist, and some are in neither.
const COMMANDS: &str = "def names():\n    return ['check', 'flush', 'migrate', 'mine', 'yours', 'managecommand']\n\n\n\
                        def check(*args):\n    \"\"\"Checks.\"\"\"\n    print('checked', *args)\n\n\n\
                        flush = migrate = mine = yours = managecommand = check\n";

#[test]
fn an_option_beats_the_environment_beats_the_settings() {
    let [of_settings, of_environment, of_option] = [Server::start(), Server::start(), Server::start()];
    let project = project_with(&format!(
        "DJANGOCOMMAND_API_KEY = {KEY:?}\nDJANGOCOMMAND_SERVER_URL = {:?}\nDJANGOCOMMAND_MAX_RETRIES = 5",
        of_settings.url()
    ));
    let start = || Runner::in_project(&project);
    // Each layer is put over those below it, which must hear nothing of the runner any more.
    for (runner, server, origin) in [
        (
            start()
                .env("DJANGOCOMMAND_SERVER_URL", of_environment.url())
                .arg("--server-url")
                .arg(of_option.url()),
            &of_option,
            "--server-url",
        ),
        (start().env("DJANGOCOMMAND_SERVER_URL", of_environment.url()), &of_environment, "environment"),
        (start(), &of_settings, "Django settings"),
    ] {
        let running = runner.start();
        heartbeats(server, 1, SOON);
        running.wait_for_log(&format!("DJANGOCOMMAND_SERVER_URL = {} ({origin})", server.url()), SOON);
        running.wait_for_log("DJANGOCOMMAND_MAX_RETRIES = 5 (Django settings)", SOON);
        running.wait_for_log("DJANGOCOMMAND_REQUEST_TIMEOUT = 30 s (default)", SOON);
    }
    for server in [&of_settings, &of_environment, &of_option] {
        assert_eq!(server.state(|state| state.of(Endpoint::Heartbeat).count()), 1);
    }
}

#[test]
fn every_setting_can_be_overridden_in_the_environment() {
    let server = Server::start();
    // Each of these is wrong or has another effect than what is in the environment.
    let project = project_with(
        "DJANGOCOMMAND_API_KEY = 'dc_of_settings'\nDJANGOCOMMAND_SERVER_URL = 'nonsense'\n\
         DJANGOCOMMAND_HEARTBEAT_INTERVAL = -1\nDJANGOCOMMAND_REQUEST_TIMEOUT = 600\n\
         DJANGOCOMMAND_MAX_RETRIES = 'many'\nDJANGOCOMMAND_ALLOW_HTTP_HOSTS = []\n\
         DJANGOCOMMAND_USE_BLOCKLIST = False\nDJANGOCOMMAND_ALLOWED_COMMANDS = ['migrate']\n\
         DJANGOCOMMAND_DISALLOWED_COMMANDS = ['mine']\nDJANGOCOMMAND_METADATAONLY_COMMANDS = 'check'\n\
         DJANGOCOMMAND_BOUND_COMMANDS = 0",
    );
    server.next(Endpoint::Heartbeat, Fault::Hang);
    let id = server.enqueue(Job::new("mine"));
    let running = Runner::in_project(&project)
        .server(&server)
        .env("DJANGOCOMMAND_HEARTBEAT_INTERVAL", "5")
        .env("DJANGOCOMMAND_REQUEST_TIMEOUT", "0.5")
        .env("DJANGOCOMMAND_MAX_RETRIES", "1")
        .env("DJANGOCOMMAND_ALLOW_HTTP_HOSTS", "example.org,127.0.0.1")
        .env("DJANGOCOMMAND_USE_BLOCKLIST", "true")
        .env("DJANGOCOMMAND_ALLOWED_COMMANDS", "check")
        .env("DJANGOCOMMAND_DISALLOWED_COMMANDS", "migrate, flush,")
        .env("DJANGOCOMMAND_METADATAONLY_COMMANDS", "mine")
        .env("DJANGOCOMMAND_BOUND_COMMANDS", "{\"check\": [\"--deploy\"]}")
        .start();
    assert_eq!(server.completed(&id, LATER).status, "success");
    server.state(|state| {
        assert_eq!(state.execution(&id).stdout(), "(metadata-only mode, no output captured)\n");
        let commands = state.commands.as_ref().unwrap();
        assert_eq!(names(commands), ["check", "mine", "yours"]);
        assert_eq!(commands[0]["bound_args"][0]["args"], "--deploy");
    });
    // The first heartbeat hangs: with the time limit of the settings the next would not come while we wait.
    heartbeats(&server, 3, LATER);
    for effective in [
        "API_KEY = dc_********",
        &format!("SERVER_URL = {}", server.url()),
        "HEARTBEAT_INTERVAL = 5 s",
        "REQUEST_TIMEOUT = 0.5 s",
        "MAX_RETRIES = 1",
        "ALLOW_HTTP_HOSTS = example.org, 127.0.0.1",
        "USE_BLOCKLIST = True",
        "ALLOWED_COMMANDS = check",
        "DISALLOWED_COMMANDS = migrate, flush",
        "METADATAONLY_COMMANDS = mine",
        "BOUND_COMMANDS = check",
    ] {
        running.wait_for_log(&format!("DJANGOCOMMAND_{effective} (environment)"), SOON);
    }
}

#[test]
fn the_key_is_neither_in_the_log_nor_in_any_command_line() {
    let (server, project) = (Server::start(), fake_project());
    let id = server.enqueue(Job::new("prompt"));
    let running = Runner::in_project(&project).server(&server).args(["-v", "3"]).start();
    server.wait_for("the command's output", LATER, |state| {
        Some(state.execution(&id).stdout()).filter(|text| !text.is_empty())
    });
    let processes = running.state_dir().processes();
    assert!(processes.len() >= 3, "runner, shim and command, not only {processes:?}");
    for pid in processes {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        assert!(!String::from_utf8_lossy(&line).contains(KEY), "{pid}: {line:?}");
    }
    // What the service says of the key, and the end of its validity, are logged too.
    server.revoke_key();
    running.wait_for_log("API key revoked", LATER);
    assert!(!running.log().contains(KEY), "{}", running.log());
    running.wait_for_log("DJANGOCOMMAND_API_KEY = dc_******** (environment)", SOON);
}

#[test]
fn everything_that_is_wrong_is_said_at_once_before_any_request() {
    let server = Server::start();
    let project = project_with(
        "DJANGOCOMMAND_HEARTBEAT_INTERVAL = '30'\nDJANGOCOMMAND_ALLOWED_COMMANDS = 'check'\n\
         DJANGOCOMMAND_METADATAONLY_COMMANDS = 'check'\nDJANGOCOMMAND_USE_BLOCKLIST = 'yes'\n\
         DJANGOCOMMAND_BOUND_COMMANDS = ['check']\nDJANGOCOMMAND_ALOWED_COMMANDS = ('check',)",
    );
    let ended = Runner::in_project(&project)
        .server(&server)
        .env("DJANGOCOMMAND_API_KEY", "not-a-key-but-secret")
        .env("DJANGOCOMMAND_REQUEST_TIMEOUT", "-1")
        .env("DJANGOCOMMAND_MAX_RETRIES", "many")
        .run_to_end(SOON);
    let lines = problems(&ended);
    for (name, value, rule) in [
        ("API_KEY", "'********' (environment)", "begins with 'dc_'"),
        ("HEARTBEAT_INTERVAL", "'30' (Django settings)", "a number of seconds from 5"),
        ("REQUEST_TIMEOUT", "'-1' (environment)", "a number of seconds from 0.1"),
        ("MAX_RETRIES", "'many' (environment)", "a whole number from 0"),
        ("ALLOWED_COMMANDS", "'check' (Django settings)", "a list or tuple"),
        ("METADATAONLY_COMMANDS", "'check' (Django settings)", "a list or tuple"),
        ("USE_BLOCKLIST", "'yes' (Django settings)", "True or False"),
        ("BOUND_COMMANDS", "'[\"check\"]' (Django settings)", "a dictionary"),
        ("ALOWED_COMMANDS", "no setting of the runner", "did you mean DJANGOCOMMAND_ALLOWED_COMMANDS?"),
    ] {
        let said = lines.iter().find(|line| line.starts_with(&format!("DJANGOCOMMAND_{name} ")));
        let said = said.unwrap_or_else(|| panic!("nothing of {name}: {lines:#?}"));
        assert!(said.contains(value) && said.contains(rule), "{said}");
    }
    assert_eq!(lines.len(), 9, "{lines:#?}");
    assert!(!ended.stderr.contains("but-secret"), "{ended:?}");
    server.state(|state| assert!(state.requests.is_empty(), "{}", state.log()));
}

#[test]
fn a_missing_key_is_said_with_the_place_to_get_one() {
    let ended = Runner::in_project(&fake_project()).run_to_end(SOON);
    let lines = problems(&ended);
    assert!(lines[0].starts_with("DJANGOCOMMAND_API_KEY is not set: copy"), "{lines:?}");
}

#[test]
fn an_unknown_name_is_an_error_in_the_settings_and_a_warning_in_the_environment() {
    let server = Server::start();
    let project = project_with("DJANGOCOMMAND_ALLOWED_COMMAND = ['check']");
    let ended = Runner::in_project(&project).server(&server).run_to_end(SOON);
    assert_eq!(
        problems(&ended),
        ["DJANGOCOMMAND_ALLOWED_COMMAND in the Django settings is no setting of the runner; \
          did you mean DJANGOCOMMAND_ALLOWED_COMMANDS?"]
    );
    server.state(|state| assert!(state.requests.is_empty(), "{}", state.log()));

    let project = project_with("");
    let runner = Runner::in_project(&project).server(&server);
    let running = runner.env("DJANGOCOMMAND_ALLOWED_COMMAND", "check").start();
    heartbeats(&server, 1, SOON);
    let line = running.wait_for_log("DJANGOCOMMAND_ALLOWED_COMMAND in the environment", SOON);
    assert!(
        line.contains("warning") && line.ends_with("did you mean DJANGOCOMMAND_ALLOWED_COMMANDS?"),
        "{line}"
    );
}

#[test]
fn at_default_stands_for_the_default_list() {
    for (settings, variable, listed) in [
        ("DJANGOCOMMAND_ALLOWED_COMMANDS = ['@default', 'mine']", None, &["check", "migrate", "mine"][..]),
        ("", Some("yours,@default"), &["check", "migrate", "yours"]),
        ("DJANGOCOMMAND_ALLOWED_COMMANDS = ['mine']", None, &["mine"]),
        (
            "DJANGOCOMMAND_USE_BLOCKLIST = True\nDJANGOCOMMAND_DISALLOWED_COMMANDS = ('@default', 'mine')",
            None,
            &["check", "migrate", "yours"],
        ),
        // The hosts' default list is in the way of the server if it is not named.
        ("DJANGOCOMMAND_ALLOW_HTTP_HOSTS = ['example.org', '@default']", None, &["check", "migrate"]),
    ] {
        let (server, project) = (Server::start(), project_with(settings));
        let mut runner = Runner::in_project(&project).server(&server);
        if let Some(list) = variable {
            runner = runner.env("DJANGOCOMMAND_ALLOWED_COMMANDS", list);
        }
        let _running = runner.start();
        let commands = server.wait_for("a sync", SOON, |state| state.commands.clone());
        assert_eq!(names(&commands), listed, "{settings} {variable:?}");
    }
}

#[test]
fn the_renamed_services_settings_work_where_there_is_none_of_the_first() {
    let server = Server::start();
    let project = project_with(&format!(
        "MANAGECOMMAND_API_KEY = {KEY:?}\nMANAGECOMMAND_SERVER_URL = {:?}\nMANAGECOMMAND_USE_BLOCKLIST = True\n\
         MANAGECOMMAND_DISALLOWED_COMMANDS = ['flush']",
        server.url()
    ));
    let (own, allowed) = (server.enqueue(Job::new("managecommand")), server.enqueue(Job::new("mine")));
    let runner = Runner::in_project(&project).env("MANAGECOMMAND_MAX_RETRIES", "2");
    let running = runner.start();
    assert_eq!(server.completed(&allowed, LATER).status, "success");
    let end = server.completed(&own, LATER);
    assert_eq!((end.exit_code, end.status.as_str()), (-1, "failed"));
    server.state(|state| {
        assert!(state.execution(&own).stderr().contains("the runner's own command"));
        assert_eq!(names(state.commands.as_ref().unwrap()), ["check", "migrate", "mine", "yours"]);
    });
    running.wait_for_log("MANAGECOMMAND_MAX_RETRIES = 2 (environment)", SOON);
    drop(running);

    // A variable does not make the project's own policy go unheard.
    let runner = Runner::in_project(&project).env("DJANGOCOMMAND_MAX_RETRIES", "2").start();
    runner.wait_for_log("DJANGOCOMMAND_MAX_RETRIES is ignored", SOON);
    runner.wait_for_log("MANAGECOMMAND_USE_BLOCKLIST = True", SOON);
    drop(runner);

    // One setting of the first service, and it is the first service's settings that count.
    project.settings("DJANGOCOMMAND_MAX_RETRIES = 2");
    let runner = Runner::in_project(&project);
    assert!(problems(&runner.run_to_end(SOON))[0].starts_with("DJANGOCOMMAND_API_KEY is not set"));
}

#[test]
fn plain_http_is_refused_but_for_the_hosts_that_are_named() {
    let server = Server::start();
    let project = project_with("");
    for (url, hosts, refused_host) in [
        ("http://192.0.2.1", None, "192.0.2.1"),
        ("http://example.org:8000/x", Some("127.0.0.1"), "example.org"),
        // A name that only looks like one of the list.
        ("http://localhost.example.org", None, "localhost.example.org"),
        (&server.url(), Some("example.org"), "127.0.0.1"),
    ] {
        let mut runner = Runner::in_project(&project).server(&server).arg("--server-url").arg(url);
        if let Some(hosts) = hosts {
            runner = runner.env("DJANGOCOMMAND_ALLOW_HTTP_HOSTS", hosts);
        }
        let ended = runner.run_to_end(SOON);
        let lines = problems(&ended);
        assert_eq!(lines.len(), 1, "{ended:?}");
        assert!(lines[0].contains("must be an https URL"), "{ended:?}");
        assert!(
            lines[0].contains(&format!("add '{refused_host}' to DJANGOCOMMAND_ALLOW_HTTP_HOSTS")),
            "{ended:?}"
        );
    }
    server.state(|state| assert!(state.requests.is_empty(), "{}", state.log()));
}

#[test]
fn a_server_url_may_end_in_a_slash_and_may_have_a_path() {
    let server = Server::start();
    let project = project_with("");
    let start =
        |url: String| Runner::in_project(&project).server(&server).arg("--server-url").arg(url).start();
    let running = start(format!("{}/", server.url()));
    heartbeats(&server, 1, SOON);
    drop(running);
    let running = start(format!("{}/some/path/", server.url()));
    let path = server.wait_for("a request below the path", SOON, |state: &State| {
        Some(state.of(Endpoint::Other).next()?.path.clone())
    });
    assert_eq!(path, "/some/path/api/runner/heartbeat/");
    drop(running);
    // To the service itself that is a page which it does not have.
    let violations = server.take_violations();
    assert!(violations.iter().all(|breach| breach.contains(" Other ")), "{violations:#?}");
}

#[test]
fn a_server_url_may_have_an_ipv6_host() {
    let project = project_with("");
    let listener = TcpListener::bind("[::1]:0").expect("this test needs IPv6 on the loopback interface");
    let address = listener.local_addr().unwrap();
    let (sender, heads) = mpsc::channel();
    thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let lines = BufReader::new(stream).lines().map_while(Result::ok);
        sender.send(lines.take_while(|line| !line.is_empty()).collect::<Vec<_>>()).unwrap();
    });
    let runner = Runner::in_project(&project).env("DJANGOCOMMAND_API_KEY", KEY);
    let _running = runner.env("DJANGOCOMMAND_SERVER_URL", format!("http://{address}/")).start();
    let head = heads.recv_timeout(SOON).expect("no request came");
    assert_eq!(head[0], "POST /api/runner/heartbeat/ HTTP/1.1");
    assert!(head.iter().any(|line| line.eq_ignore_ascii_case(&format!("host: {address}"))), "{head:?}");
}

#[test]
fn the_heartbeat_keeps_the_interval_that_is_set() {
    let (server, project) = (Server::start(), project_with("DJANGOCOMMAND_HEARTBEAT_INTERVAL = 5.5"));
    let _running = Runner::in_project(&project).server(&server).start();
    let [first, second] = [heartbeats(&server, 1, SOON), heartbeats(&server, 2, SOON)];
    let between = second.duration_since(first);
    // A full machine may delay either; thirty seconds, which is the default, it is not.
    assert!((4.0..25.0).contains(&between.as_secs_f64()), "{between:?}");
}

/// Waits for that many heartbeats; when the last of them came.
fn heartbeats(server: &Server, count: usize, within: Duration) -> Instant {
    let look = |state: &State| Some(state.of(Endpoint::Heartbeat).nth(count - 1)?.at);
    server.wait_for(&format!("heartbeat {count}"), within, look)
}

/// A project with `COMMANDS` and no settings of the runner but these.
fn project_with(settings: &str) -> Project {
    let project = fake_project_with_settings(&format!("del DJANGOCOMMAND_ALLOWED_COMMANDS\n{settings}"));
    project.write("commands.py", COMMANDS);
    project
}

fn names(commands: &Value) -> Vec<&str> {
    commands.as_array().unwrap().iter().map(|command| command["name"].as_str().unwrap()).collect()
}

/// What is wrong with each setting, as a runner says that cannot use its configuration.
fn problems(ended: &Ended) -> Vec<&str> {
    assert_eq!(ended.code(), Some(78), "{ended:?}");
    let (_, text) =
        ended.stderr.split_once("djangocommand: ").expect("an error is told in the program's name");
    let lines = text.lines().filter(|line| !line.ends_with(" settings cannot be used:"));
    lines.map(|line| line.trim_start_matches("- ")).collect()
}
