//! Reloading: new settings and commands are taken by a signal or because files have changed, and nothing that runs
//! notices.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;

use crate::support::project::{
    Project, django_project, fake_project, fake_project_with_settings, system_python,
};
use crate::support::runner::{Ended, Runner, Running, status, wait_for_status};
use crate::support::server::{Endpoint, Job, KEY, Server};
use crate::support::state_dir::StateDir;
use crate::support::sys;
use crate::support::wait::eventually;

/// For anything that starts interpreters, on a machine that is busy with other tests.
const WITHIN: Duration = Duration::from_secs(60);
/// A change is loaded within a few seconds in development; ten times what that is.
const A_FEW_SECONDS: Duration = Duration::from_secs(30);
const LOADED: &str = "the project was loaded again";
const BROKEN: &str = "the project cannot be loaded again, what was loaded before stays in force";
/// Settings that take so many seconds whenever a runner loads them again, but not when a command does. A file says that
/// this has begun.
const SLOW_AGAIN: &str = "
import sys, time
if sys.argv[1:] == ['djangocommand', 'start']:
    with open(os.path.join(BASE_DIR, 'loads'), 'a') as loads:
        loads.write('x')
        again = loads.tell() > 1
    if again:
        open(os.path.join(BASE_DIR, 'loading'), 'w').close()
        time.sleep(SECONDS)
";
/// `patient PATH` prints a line, waits until there is such a file, and prints another one.
const PATIENT: &str = "
def patient(path):
    print(os.getpid(), flush=True)
    while not os.path.exists(path):
        time.sleep(0.1)
    print(os.getpid())
";
/// Starts what follows on a terminal of its own, which is gone when this program is. Standard error stays as it is.
const ON_A_TERMINAL: &str = "
import os, pty, signal, sys
stderr = os.dup(2)
if pty.fork()[0] == 0:
    os.dup2(stderr, 2)
    if sys.argv[1] == 'nohup':
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    os.execv(sys.argv[2], sys.argv[2:])
signal.pause()
";

#[test]
fn reload_takes_new_settings_and_commands_tells_the_service_and_leaves_what_runs_alone() {
    let (server, project) = (Server::start(), fake_project());
    let go_on = project.dir().join("go_on");
    append(
        &project.dir().join("commands.py"),
        "def patient(path):\n    print(os.getpid(), flush=True)\n    while not os.path.exists(path):\n        \
         time.sleep(0.1)\n    print(os.getpid())",
    );
    let running = server.enqueue(Job::new("patient").args(go_on.to_str().unwrap()));
    let runner = Runner::in_project(&project).server(&server).arg("--no-reload").start();
    let pid = server.wait_for("its first line", WITHIN, |state| {
        state.execution(&running).stdout().lines().next().map(str::to_owned)
    });
    append(&project.dir().join("commands.py"), "def fresh():\n    \"\"\"Is new.\"\"\"\n    print('fresh')");
    project.settings("DJANGOCOMMAND_MAX_RETRIES = 7");
    let too_early = server.enqueue(Job::new("fresh"));
    assert_eq!(server.completed(&too_early, WITHIN).status, "failed", "the file alone changes nothing");
    assert!(!is_known(&server, "fresh"));

    let ended = reload(&project, &runner);
    assert_eq!((ended.code(), &*ended.stdout, &*ended.stderr), (Some(0), "reloaded\n", ""));
    runner.wait_for_log("MAX_RETRIES = 7", WITHIN);
    wait_until_known(&server, "fresh", WITHIN);
    let after = server.enqueue(Job::new("fresh"));
    assert_eq!(server.completed(&after, WITHIN).status, "success");
    File::create(go_on).unwrap();
    assert_eq!(server.completed(&running, WITHIN).status, "success");
    server.state(|state| assert_eq!(state.execution(&running).stdout(), format!("{pid}\n{pid}\n")));
    assert_eq!(runner.log().matches(LOADED).count(), 1);
}

#[test]
fn reload_without_a_runner_says_so() {
    let (project, state) = (fake_project(), StateDir::new());
    let ended = Runner::in_project(&project).subcommand("reload").state_dir(&state).run_to_end(WITHIN);
    assert_eq!(ended.code(), Some(1), "{ended:?}");
    assert!(ended.stderr.starts_with("djangocommand: no runner is running with the state in '"), "{ended:?}");
}

#[test]
fn heartbeats_and_output_go_on_while_python_loads() {
    let (server, project) =
        (Server::start(), fake_project_with_settings(&SLOW_AGAIN.replace("SECONDS", "8")));
    let id = server.enqueue(Job::new("slow").args("60 0.5"));
    let runner =
        Runner::in_project(&project).server(&server).env("DJANGOCOMMAND_HEARTBEAT_INTERVAL", "5").start();
    server.wait_for("output", WITHIN, |state| state.of(Endpoint::Output).next().map(|_| ()));
    runner.signal(libc::SIGHUP);
    eventually("the project to load again", || project.dir().join("loading").exists());
    let began = Instant::now();
    runner.wait_for_log(LOADED, WITHIN);
    let ended = Instant::now();
    assert!(ended - began > Duration::from_secs(7), "it was to take 8 s");
    server.state(|state| {
        let meanwhile = |endpoint| state.of(endpoint).filter(|r| began < r.at && r.at < ended).count();
        let counts = [Endpoint::Heartbeat, Endpoint::Output, Endpoint::Pending].map(meanwhile);
        assert!(counts[0] >= 1 && counts[1] >= 5 && counts[2] >= 2, "{counts:?}\n{}", state.log());
        let (text, lines) = (state.execution(&id).stdout(), state.execution(&id).stdout().lines().count());
        assert_eq!(text, (1..=lines).map(|number| format!("line {number}\n")).collect::<String>());
    });
}

#[test]
fn what_is_broken_leaves_the_old_configuration_in_force_is_said_once_and_reload_fails_with_it() {
    let cases = [
        ("def broken(:", "SyntaxError", false),
        ("DJANGOCOMMAND_HEARTBEAT_INTERVAL = 'soon'", "DJANGOCOMMAND_HEARTBEAT_INTERVAL", true),
        ("del DJANGOCOMMAND_API_KEY", "DJANGOCOMMAND_API_KEY", true),
    ];
    let sessions = cases.map(|case| {
        let (server, project) = (Server::start(), fake_project());
        project.settings(&at_server(&server, KEY));
        let runner = Runner::in_project(&project).arg("--no-reload").start();
        (case, server, project, runner)
    });
    for ((text, said, commands_load), server, project, runner) in sessions {
        server.wait_for("a poll", WITHIN, |state| state.of(Endpoint::Pending).next().map(|_| ()));
        let right = fs::read_to_string(project.dir().join("settings.py")).unwrap();
        // What is not allowed any more is allowed as long as this cannot be loaded.
        project.settings(&format!("DJANGOCOMMAND_ALLOWED_COMMANDS = ['cwd']\n{text}"));
        for _ in 0..2 {
            let ended = reload(&project, &runner);
            assert_eq!((ended.code(), &*ended.stdout), (Some(1), ""), "{ended:?}");
            let begin = "djangocommand: the runner goes on with what it had loaded before: ";
            assert!(ended.stderr.starts_with(begin) && ended.stderr.contains(said), "{ended:?}");
        }
        assert_eq!(runner.log().matches(BROKEN).count(), 1, "{}", runner.log());
        let (code, report) = status(&project, runner.state_dir());
        assert_eq!(code, Some(0));
        assert!(report["reload_error"].as_str().unwrap().contains(said), "{report:#}");
        let shown = Runner::in_project(&project).subcommand("status").state_dir(runner.state_dir());
        let shown = shown.run_to_end(WITHIN).stdout;
        let of_reload = shown.lines().skip_while(|line| !line.starts_with("reload "));
        let [first, cause] = of_reload.take(2).collect::<Vec<_>>()[..] else { panic!("{shown}") };
        assert!(first.contains("is in force") && cause.contains(said), "{shown}");
        assert!(shown.lines().count() < 20 && !shown.contains("\\n"), "a traceback fills no screen: {shown}");

        let id = server.enqueue(Job::new("echo").args("by the old policy"));
        let end = server.completed(&id, WITHIN);
        let stderr = server.state(|state| state.execution(&id).stderr());
        match commands_load {
            true => assert_eq!(end.status, "success", "{stderr}"),
            // Policy lets it run; that no command can load such settings is its own failure.
            false => assert!(end.exit_code == 1 && stderr.contains(said), "{stderr}"),
        }

        project.write("settings.py", &right);
        let ended = reload(&project, &runner);
        assert_eq!((ended.code(), &*ended.stdout), (Some(0), "reloaded\n"), "{ended:?}");
        assert_eq!(status(&project, runner.state_dir()).1["reload_error"], Value::Null);
    }
}

#[test]
fn a_new_key_and_a_new_server_are_used_after_a_reload() {
    let (old, new, project) = (Server::start(), Server::start(), fake_project());
    project.settings(&at_server(&old, "dc_of_yesterday"));
    let runner = Runner::in_project(&project).arg("--no-reload").start();
    runner.wait_for_log("the service refuses the key", WITHIN);
    wait_for_status(&project, runner.state_dir(), "a refused key", WITHIN, |report| {
        (report["key"] == "refused").then_some(())
    });
    project.settings(&format!("DJANGOCOMMAND_API_KEY = {KEY:?}"));
    assert_eq!(reload(&project, &runner).code(), Some(0));
    let id = old.enqueue(Job::new("echo"));
    assert_eq!(old.completed(&id, WITHIN).status, "success");

    project.settings(&at_server(&new, KEY));
    assert_eq!(reload(&project, &runner).code(), Some(0));
    let told = Instant::now();
    let id = new.enqueue(Job::new("echo"));
    assert_eq!(new.completed(&id, WITHIN).status, "success");
    wait_until_known(&new, "echo", WITHIN);
    let (_, report) = status(&project, runner.state_dir());
    assert_eq!((&report["server_url"], &report["key"]), (&new.url().into(), &"accepted".into()));
    old.state(|state| {
        let late = state.requests.iter().filter(|request| request.at > told).count();
        assert_eq!(late, 0, "{}", state.log());
    });
}

#[test]
fn another_service_waits_until_this_one_has_all_that_it_has_asked_for() {
    let (old, new, project) = (Server::start(), Server::start(), fake_project_with_settings("DEBUG = True"));
    project.settings(&at_server(&old, KEY));
    let go_on = project.dir().join("go_on");
    append(&project.dir().join("commands.py"), PATIENT);
    let id = old.enqueue(Job::new("patient").args(go_on.to_str().unwrap()));
    let runner = Runner::in_project(&project).start();
    old.wait_for("its first line", WITHIN, |state| (state.execution(&id).stdout() != "").then_some(()));

    project.settings(&at_server(&new, KEY));
    let why = "the service is another one, and what this one has asked for is not delivered yet";
    // So often that by time alone it would not be tried again within a minute.
    for _ in 0..5 {
        let ended = reload(&project, &runner);
        assert_eq!((ended.code(), &*ended.stdout), (Some(1), ""), "{ended:?}");
        assert!(ended.stderr.contains(why), "{ended:?}");
    }
    let (code, report) = status(&project, runner.state_dir());
    assert_eq!((code, &report["server_url"]), (Some(0), &old.url().into()));
    assert!(report["reload_error"].as_str().unwrap().contains(why), "{report:#}");

    File::create(go_on).unwrap();
    assert_eq!(old.completed(&id, WITHIN).status, "success");
    old.state(|state| assert_eq!(state.execution(&id).stdout().lines().count(), 2));
    // By itself, because it looks at the files.
    wait_for_status(&project, runner.state_dir(), "the new service", A_FEW_SECONDS, |report| {
        (report["server_url"] == new.url() && report["reload_error"].is_null()).then_some(())
    });
    let next = new.enqueue(Job::new("echo"));
    assert_eq!(new.completed(&next, WITHIN).status, "success");
    new.state(|state| {
        let is_old = |text: &str| text.contains(&id);
        assert!(!state.requests.iter().any(|request| is_old(&request.path)), "{}", state.log());
    });
    assert_eq!(runner.log().matches(why).count(), 1, "{}", runner.log());
}

#[test]
fn a_project_in_another_ones_directory_is_never_taken_for_that_one_while_it_is_away() {
    let (server, outer) = (Server::start(), fake_project());
    let inner = release(&outer, "inner");
    append(&inner.join("commands.py"), "def of_inner():\n    print(os.getcwd())");
    let runner = Runner::in_project(&outer).server(&server).args(["--no-reload", "-C"]).arg(&inner).start();
    wait_until_known(&server, "of_inner", WITHIN);
    let aside = outer.dir().join("aside");
    fs::rename(&inner, &aside).unwrap();
    for is_empty in [false, true] {
        let said = if is_empty {
            fs::create_dir(&inner).unwrap();
            format!("the project in '{}' is not there", inner.display())
        } else {
            format!("cannot use the directory '{}': No such file", inner.display())
        };
        let ended = reload(&outer, &runner);
        assert_eq!(ended.code(), Some(1), "{ended:?}");
        assert!(ended.stderr.contains(&said), "{ended:?}");
        let (code, report) = status(&outer, runner.state_dir());
        assert_eq!((code, &report["project"]), (Some(0), &inner.to_str().unwrap().into()), "{report:#}");
        assert!(report["reload_error"].as_str().unwrap().contains(&said), "{report:#}");
    }
    fs::remove_dir(&inner).unwrap();
    fs::rename(&aside, &inner).unwrap();
    let ended = reload(&outer, &runner);
    assert_eq!((ended.code(), &*ended.stdout), (Some(0), "reloaded\n"), "{ended:?}");
    let id = server.enqueue(Job::new("of_inner"));
    assert_eq!(server.completed(&id, WITHIN).status, "success");
    let ran = fs::canonicalize(inner).unwrap();
    server.state(|state| assert_eq!(state.execution(&id).stdout(), format!("{}\n", ran.display())));
    assert!(is_known(&server, "of_inner"));
}

#[test]
fn many_sighups_are_one_reload_or_two_and_the_last_state_of_the_files_is_in_force() {
    let (server, project) =
        (Server::start(), fake_project_with_settings(&SLOW_AGAIN.replace("SECONDS", "1")));
    let runner = Runner::in_project(&project).server(&server).arg("--no-reload").start();
    server.wait_for("a poll", WITHIN, |state| state.of(Endpoint::Pending).next().map(|_| ()));
    for retries in 1..=9 {
        project.settings(&format!("DJANGOCOMMAND_MAX_RETRIES = {retries}"));
        runner.signal(libc::SIGHUP);
        if retries == 5 {
            // The others come while this is being loaded.
            eventually("the project to load again", || project.dir().join("loading").exists());
        }
    }
    runner.wait_for_log("MAX_RETRIES = 9", WITHIN);
    runner.wait_for_log(LOADED, WITHIN);
    // Each load leaves a mark; the first one is that of the start.
    let loads = fs::metadata(project.dir().join("loads")).unwrap().len() - 1;
    assert!((1..=4).contains(&loads), "loaded {loads} times for 9 signals");
}

#[test]
fn reload_waits_for_a_load_that_has_begun_after_it_was_called() {
    let (server, project) =
        (Server::start(), fake_project_with_settings(&SLOW_AGAIN.replace("SECONDS", "2")));
    let runner = Runner::in_project(&project).server(&server).arg("--no-reload").start();
    server.wait_for("a poll", WITHIN, |state| state.of(Endpoint::Pending).next().map(|_| ()));
    runner.signal(libc::SIGHUP);
    eventually("the project to load again", || project.dir().join("loading").exists());
    project.settings("DJANGOCOMMAND_HEARTBEAT_INTERVAL = 'soon'");
    let ended = reload(&project, &runner);
    assert_eq!(ended.code(), Some(1), "it tells of the load before: {ended:?}");
    assert!(ended.stderr.contains("DJANGOCOMMAND_HEARTBEAT_INTERVAL"), "{ended:?}");
}

#[test]
fn reload_of_a_runner_that_is_stopping_says_so_at_once() {
    let (server, project) = (Server::start(), fake_project());
    let id = server.enqueue(Job::new("prompt"));
    let runner = Runner::in_project(&project).server(&server).start();
    server.wait_for("the prompt", WITHIN, |state| (state.execution(&id).stdout() != "").then_some(()));
    runner.signal(libc::SIGTERM);
    runner.wait_for_log("stopping when 1 running", WITHIN);
    let asked = Instant::now();
    let ended = reload(&project, &runner);
    assert_eq!(ended.code(), Some(1), "{ended:?}");
    assert!(ended.stderr.contains("it is stopping"), "{ended:?}");
    assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
}

#[test]
fn a_reload_and_a_stop_that_come_together_are_both_heard() {
    let (server, project) = (Server::start(), fake_project());
    let go_on = project.dir().join("go_on");
    append(&project.dir().join("commands.py"), PATIENT);
    let id = server.enqueue(Job::new("patient").args(go_on.to_str().unwrap()));
    let runner = Runner::in_project(&project).server(&server).arg("--no-reload").start();
    server.wait_for("its first line", WITHIN, |state| (state.execution(&id).stdout() != "").then_some(()));
    let asked = |name| Runner::in_project(&project).subcommand(name).state_dir(runner.state_dir());
    runner.signal(libc::SIGSTOP);
    let reload = asked("reload").start();
    eventually("the one signal", || is_pending(runner.pid(), libc::SIGHUP));
    let stop = asked("stop").args(["--timeout", "60"]).start();
    eventually("the other signal", || is_pending(runner.pid(), libc::SIGQUIT));
    runner.signal(libc::SIGCONT);
    let told = Instant::now();
    assert_eq!(reload.wait_exit(WITHIN).code(), Some(1));
    assert!(told.elapsed() < Duration::from_secs(10), "{:?}", told.elapsed());
    reload.wait_for_log("it is stopping", WITHIN);
    runner.wait_for_log("stopping when 1 running", WITHIN);
    assert!(!runner.log().contains(LOADED), "{}", runner.log());
    File::create(go_on).unwrap();
    assert_eq!(server.completed(&id, WITHIN).status, "success");
    assert_eq!((stop.wait_exit(WITHIN).code(), runner.wait_exit(WITHIN).code()), (Some(0), Some(0)));
}

#[test]
fn when_its_terminal_is_closed_a_runner_lets_what_runs_end_and_ends() {
    let (server, project) = (Server::start(), fake_project());
    let id = server.enqueue(Job::new("slow").args("4 0.5"));
    let runner = Runner::in_project(&project).server(&server).launched_by(terminal("plain")).start();
    server.wait_for("line 1", WITHIN, |state| (state.execution(&id).stdout() != "").then_some(()));
    runner.kill();
    assert_eq!(server.completed(&id, WITHIN).status, "success");
    server.state(|state| {
        assert_eq!(state.execution(&id).stdout(), "line 1\nline 2\nline 3\nline 4\n");
    });
    eventually("the end of the runner", || status(&project, runner.state_dir()).0 == Some(3));
    runner.wait_for_log("stopping when 1 running", WITHIN);
}

#[test]
fn under_nohup_a_closed_terminal_ends_nothing() {
    let (server, project) = (Server::start(), fake_project());
    let runner = Runner::in_project(&project).server(&server).launched_by(terminal("nohup")).start();
    server.wait_for("a poll", WITHIN, |state| state.of(Endpoint::Pending).next().map(|_| ()));
    runner.kill();
    // All that comes of the signal: who sent it, and why, cannot be told.
    runner.wait_for_log(LOADED, WITHIN);
    let id = server.enqueue(Job::new("echo"));
    assert_eq!(server.completed(&id, WITHIN).status, "success");
    assert_eq!(status(&project, runner.state_dir()).0, Some(0));
}

#[test]
fn in_development_changed_files_of_a_django_project_are_loaded_within_seconds() {
    let (server, project) = (Server::start(), django_project());
    project.settings("DEBUG = True\nDJANGOCOMMAND_USE_BLOCKLIST = True");
    let runner = Runner::in_project(&project).server(&server).start();
    wait_until_known(&server, "takes_options", WITHIN);
    let commands = project.dir().join("polls/management/commands");

    let command = fs::read_to_string(commands.join("takes_options.py")).unwrap();
    fs::write(commands.join("fresh.py"), &command).unwrap();
    wait_until_known(&server, "fresh", A_FEW_SECONDS);
    fs::write(commands.join("fresh.py"), command.replace("Prints its", "Shows its")).unwrap();
    server.wait_for("the new help", A_FEW_SECONDS, |state| {
        help(state.commands.as_ref()?, "fresh")?.contains("Shows its").then_some(())
    });
    // As an editor or a deployment replaces a file.
    let settings = project.dir().join("mysite/settings.py");
    let text = fs::read_to_string(&settings).unwrap() + "\nDJANGOCOMMAND_DISALLOWED_COMMANDS = ['fresh']\n";
    fs::write(settings.with_extension("new"), text).unwrap();
    fs::rename(settings.with_extension("new"), &settings).unwrap();
    server.wait_for("a list without it", A_FEW_SECONDS, |state| {
        help(state.commands.as_ref()?, "fresh").is_none().then_some(())
    });
    assert!(!runner.log().contains(" error "), "{}", runner.log());
}

#[test]
fn without_debug_a_release_is_noticed_at_the_next_heartbeat_through_the_link_that_leads_to_it() {
    let (server, home) = (Server::start(), fake_project());
    let (one, two) = (release(&home, "1"), release(&home, "2"));
    append(&two.join("commands.py"), "def fresh():\n    print(os.getcwd())");
    let current = home.dir().join("current");
    symlink("releases/1", &current).unwrap();
    let runner = Runner::in_project(&home)
        .server(&server)
        .env("DJANGOCOMMAND_HEARTBEAT_INTERVAL", "5")
        .arg("-C")
        .arg(&current)
        .start();
    wait_until_known(&server, "echo", WITHIN);
    symlink("releases/2", home.dir().join("next")).unwrap();
    fs::rename(home.dir().join("next"), &current).unwrap();
    wait_until_known(&server, "fresh", A_FEW_SECONDS);
    // The release that was left may be removed.
    fs::remove_dir_all(one).unwrap();
    let id = server.enqueue(Job::new("fresh"));
    assert_eq!(server.completed(&id, WITHIN).status, "success");
    let two = fs::canonicalize(two).unwrap();
    server.state(|state| assert_eq!(state.execution(&id).stdout(), format!("{}\n", two.display())));
    assert!(!runner.log().contains(" error "), "{}", runner.log());
}

#[test]
fn no_reload_leaves_changed_files_alone_but_not_sighup() {
    let (server, project) = (Server::start(), fake_project_with_settings("DEBUG = True"));
    let deaf = Runner::in_project(&project).server(&server).arg("--no-reload").start();
    let other = Server::start();
    let watching = Runner::in_project(&project).server(&other).start();
    for server in [&server, &other] {
        wait_until_known(server, "echo", WITHIN);
    }
    append(&project.dir().join("commands.py"), "def fresh():\n    pass");
    wait_until_known(&other, "fresh", A_FEW_SECONDS);
    append(&project.dir().join("commands.py"), "def another():\n    pass");
    wait_until_known(&other, "another", A_FEW_SECONDS);
    watching.kill();
    assert!(!deaf.log().contains(LOADED) && !is_known(&server, "fresh"), "{}", deaf.log());
    deaf.signal(libc::SIGHUP);
    wait_until_known(&server, "another", WITHIN);
}

#[test]
fn a_file_that_is_half_written_in_the_midst_of_a_deployment_is_met_with_patience() {
    let (server, project) = (Server::start(), fake_project_with_settings("DEBUG = True"));
    let runner = Runner::in_project(&project).server(&server).start();
    wait_until_known(&server, "echo", WITHIN);
    let right = fs::read_to_string(project.dir().join("settings.py")).unwrap();
    // The rest of the file is not there yet.
    project.write("settings.py", &right[..right.find("_COMMANDS = tuple(").unwrap()]);
    runner.wait_for_log(BROKEN, A_FEW_SECONDS);
    // So long that it is tried once more, as the file's state of 3 s and more.
    let tries = |report: &Value| report["reload_error"].as_str().map(str::to_owned);
    wait_for_status(&project, runner.state_dir(), "the error", WITHIN, tries);
    let before = server.state(|state| state.of(Endpoint::Pending).count());
    server.wait_for("two more polls", WITHIN, |state| {
        (state.of(Endpoint::Pending).count() >= before + 2).then_some(())
    });
    project.write("settings.py", &format!("{right}\nDJANGOCOMMAND_MAX_RETRIES = 7\n"));
    runner.wait_for_log("MAX_RETRIES = 7", A_FEW_SECONDS);
    wait_for_status(&project, runner.state_dir(), "no error", WITHIN, |report| {
        report["reload_error"].is_null().then_some(())
    });
    assert_eq!(runner.log().matches(BROKEN).count(), 1, "{}", runner.log());
    let id = server.enqueue(Job::new("echo"));
    assert_eq!(server.completed(&id, WITHIN).status, "success");
}

#[test]
fn to_touch_a_file_costs_one_load_and_no_sync() {
    let (server, project) =
        (Server::start(), fake_project_with_settings(&SLOW_AGAIN.replace("SECONDS", "0")));
    project.settings("DEBUG = True");
    let runner = Runner::in_project(&project).server(&server).start();
    wait_until_known(&server, "echo", WITHIN);
    let loads = || fs::metadata(project.dir().join("loads")).unwrap().len();
    let (before, syncs) = (loads(), server.state(|state| state.of(Endpoint::Sync).count()));
    let file = OpenOptions::new().append(true).open(project.dir().join("commands.py")).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(100)).unwrap();
    runner.wait_for_log(LOADED, A_FEW_SECONDS);
    let loaded = Instant::now();
    // Time enough for it to look at the files twice and more.
    server.wait_for("requests that are surely later", WITHIN, |state| {
        let polls = state.of(Endpoint::Pending).filter(|request| request.at > loaded).count();
        (polls >= 3).then_some(())
    });
    assert_eq!((loads(), server.state(|state| state.of(Endpoint::Sync).count())), (before + 1, syncs));
}

#[test]
fn nothing_is_left_of_the_projects_python_when_the_runner_is_ended_in_the_midst_of_a_reload() {
    for signal in [libc::SIGKILL, libc::SIGTERM] {
        let (server, project) =
            (Server::start(), fake_project_with_settings(&SLOW_AGAIN.replace("SECONDS", "60")));
        let runner = Runner::in_project(&project).server(&server).arg("--no-reload").start();
        server.wait_for("a poll", WITHIN, |state| state.of(Endpoint::Pending).next().map(|_| ()));
        runner.signal(libc::SIGHUP);
        eventually("the project to load again", || project.dir().join("loading").exists());
        let python = runner.state_dir().processes().into_iter().find(|pid| *pid != runner.pid()).unwrap();
        let told = Instant::now();
        sys::kill(runner.pid(), signal);
        runner.wait_exit(WITHIN);
        eventually("the end of Python", || !Path::new(&format!("/proc/{python}")).exists());
        assert!(told.elapsed() < Duration::from_secs(10), "{:?}", told.elapsed());
        assert!(runner.state_dir().processes().is_empty());
    }
}

fn reload(project: &Project, runner: &Running) -> Ended {
    Runner::in_project(project).subcommand("reload").state_dir(runner.state_dir()).run_to_end(WITHIN)
}

/// The settings that lead to a server.
fn at_server(server: &Server, key: &str) -> String {
    format!("DJANGOCOMMAND_SERVER_URL = {:?}\nDJANGOCOMMAND_API_KEY = {key:?}", server.url())
}

/// A copy of the fake project in a directory of a deployment.
fn release(home: &Project, name: &str) -> std::path::PathBuf {
    let dir = home.dir().join("releases").join(name);
    fs::create_dir_all(&dir).unwrap();
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/fake/.");
    assert!(Command::new("cp").arg("-r").args([Path::new(source), &dir]).status().unwrap().success());
    dir
}

/// What starts the binary on a terminal that is closed when this is killed.
fn terminal(how: &str) -> [String; 4] {
    let python = system_python().to_str().unwrap().to_owned();
    [python, "-c".to_owned(), ON_A_TERMINAL.to_owned(), how.to_owned()]
}

fn append(path: &Path, text: &str) {
    writeln!(OpenOptions::new().append(true).open(path).unwrap(), "\n{text}").unwrap();
}

/// The help that the service was told of a command.
fn help<'a>(commands: &'a Value, name: &str) -> Option<&'a str> {
    commands.as_array()?.iter().find(|command| command["name"] == name)?["help_text"].as_str()
}

fn is_known(server: &Server, name: &str) -> bool {
    server.state(|state| state.commands.as_ref().is_some_and(|commands| help(commands, name).is_some()))
}

fn wait_until_known(server: &Server, name: &str, within: Duration) {
    server.wait_for(&format!("the command {name}"), within, |state| {
        help(state.commands.as_ref()?, name).map(|_| ())
    });
}

/// Whether a signal waits for a process that is held up.
fn is_pending(pid: u32, signal: i32) -> bool {
    let lines = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let mask = lines.lines().find_map(|line| line.strip_prefix("ShdPnd:")).unwrap();
    u64::from_str_radix(mask.trim(), 16).unwrap() & (1 << (signal - 1)) != 0
}
