//! An unreliable service: away for a while, its answers lost, its clock another. What runs is delivered whole and once.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::support::project::{Project, fake_project};
use crate::support::runner::{Runner, Running};
use crate::support::server::http::http_date;
use crate::support::server::{Endpoint, EventKind, Fault, Job, Server};
use crate::support::state_dir::StateDir;
use crate::support::sys;

/// For what is a matter of milliseconds.
const SOON: Duration = Duration::from_secs(20);
/// For what starts an interpreter and waits for polls and backoffs.
const LATER: Duration = Duration::from_secs(60);
/// How long the service is away.
const OUTAGE: Duration = Duration::from_secs(10);

#[test]
fn what_is_printed_in_ten_seconds_without_the_service_arrives_in_order_and_once() {
    let (server, project) = (Server::start(), fake_project());
    let events = server.events();
    let id = server.enqueue(Job::new("slow").args("60 0.25"));
    let runner = start(&project, &server, &[]);
    shows(&server, &id, "line 4\n");
    server.down();
    server.wait_for("ten seconds of vain attempts", LATER, |state| {
        let (first, last) = (state.refused.first()?, state.refused.last()?);
        (*last - *first >= OUTAGE).then_some(())
    });
    server.up();
    assert_eq!(server.completed(&id, LATER).status, "success");
    assert!(runner.stop(SOON).success());
    assert_eq!(server.state(|state| state.execution(&id).stdout()), numbered(60));
    let completions = events.try_iter().filter(|event| matches!(event.kind, EventKind::Completed { .. }));
    assert_eq!(completions.count(), 1);
    let log = runner.log();
    for said in [" warning the service cannot be reached (", "the service answers again, after 1"] {
        assert_eq!(log.matches(said).count(), 1, "{said}: {log}");
    }
    let troubles = log.lines().filter(|line| line.contains(" warning ") || line.contains(" error "));
    assert_eq!(troubles.count(), 1, "{log}");
}

/// That the same chunk has the same content, and that nothing comes after the completion, the server sees to itself.
#[test]
fn an_answer_that_is_lost_after_the_request_was_processed_repeats_nothing_on_any_endpoint() {
    let project = fake_project();
    let faults = [
        ("closed", Fault::ProcessedThenClose),
        ("reset", Fault::ResetHalfWay),
        ("cut", Fault::Truncated),
        ("late", Fault::Delay(Duration::from_millis(1500))),
        ("error", Fault::ProcessedThenStatus(502)),
    ];
    thread::scope(|scope| {
        for (name, fault) in faults {
            let project = &project;
            scope.spawn(move || {
                let server = Server::start();
                let events = server.events();
                Endpoint::ALL.into_iter().for_each(|endpoint| server.next(endpoint, fault.clone()));
                let proof = project.dir().join(name);
                let touched = server.enqueue(Job::new("touch").args(proof.to_str().unwrap()));
                let id = server.enqueue(Job::new("slow").args("12 0.5"));
                let runner = start(project, &server, &[("REQUEST_TIMEOUT", "1")]);
                for id in [&id, &touched] {
                    assert_eq!(server.completed(id, LATER).status, "success", "{name}");
                }
                assert!(runner.stop(LATER).success(), "{name}");
                assert!(runner.state_dir().executions().is_empty(), "{name}");
                assert_eq!(std::fs::read_to_string(proof).unwrap(), "ran\n", "{name}");
                let count = |what: fn(&EventKind) -> bool, kinds: &[EventKind]| {
                    kinds.iter().filter(|kind| what(kind)).count()
                };
                let kinds: Vec<EventKind> = events.try_iter().map(|event| event.kind).collect();
                assert_eq!(count(|kind| matches!(kind, EventKind::Started { .. }), &kinds), 2, "{name}");
                assert_eq!(count(|kind| matches!(kind, EventKind::Completed { .. }), &kinds), 2, "{name}");
                server.state(|state| {
                    assert_eq!(state.execution(&id).stdout(), numbered(12), "{name}");
                    let untouched = Endpoint::ALL.into_iter().filter(|one| state.of(*one).count() < 2);
                    assert_eq!(untouched.count(), 0, "{name}: {}", state.log());
                });
            });
        }
    });
}

#[test]
fn a_request_whose_body_is_cut_by_a_reset_is_sent_again() {
    let (server, project) = (Server::counting(), fake_project());
    let id = server.enqueue(Job::new("big").args("3"));
    // Four times in the middle of a chunk: each half megabyte is longer than this.
    let line = Line::to(&server, 300_000, 4);
    let runner = start(&project, &server, &[("SERVER_URL", &line)]);
    assert_eq!(server.completed(&id, LATER).status, "success");
    assert!(runner.stop(SOON).success());
    server.state(|state| assert_eq!(state.execution(&id).bytes(false), 3_000_000));
    assert!(runner.log().contains("the service cannot be reached (output of execution "), "{}", runner.log());
}

/// Neither may each byte begin the time anew, nor may whoever waits for the answer be kept from all else for longer.
#[test]
fn an_answer_at_one_byte_a_second_holds_up_the_loop_for_no_longer_than_a_request_may_take() {
    const TIMEOUT: Duration = Duration::from_secs(2);
    let project = fake_project();
    thread::scope(|scope| {
        for fault in [Fault::Trickle, Fault::TrickleBody] {
            let project = &project;
            scope.spawn(move || {
                let server = Server::start();
                let id = server.enqueue(Job::new("slow").args("24 0.25"));
                let runner = start(project, &server, &[("REQUEST_TIMEOUT", "2")]);
                shows(&server, &id, "line 2\n");
                let met = |endpoint| {
                    server.always(endpoint, fault.clone());
                    let met = server.state(|state| state.of(endpoint).count());
                    // What comes next on the same connection or another shows when this one was given up.
                    let gap = server.wait_for("the request after it", LATER, |state| {
                        let at = state.of(endpoint).nth(met)?.at;
                        let next = state.requests.iter().map(|request| request.at).find(|next| *next > at)?;
                        Some(next - at)
                    });
                    server.heal(endpoint);
                    assert!(gap >= TIMEOUT - Duration::from_millis(100), "{endpoint:?} {fault:?}: {gap:?}");
                    assert!(gap < TIMEOUT + Duration::from_secs(3), "{endpoint:?} {fault:?}: {gap:?}");
                };
                [Endpoint::CancelStatus, Endpoint::Output, Endpoint::Heartbeat].into_iter().for_each(met);
                assert_eq!(server.completed(&id, LATER).status, "success");
                assert!(runner.stop(SOON).success());
                assert_eq!(server.state(|state| state.execution(&id).stdout()), numbered(24));
                assert!(runner.log().contains("no answer in time"), "{}", runner.log());
            });
        }
    });
}

#[test]
fn a_wait_of_ten_years_holds_up_nobody_else_and_is_forgotten_with_the_runner() {
    for (endpoint, code, wait) in [
        (Endpoint::Output, 503, "315360000".to_owned()),
        (Endpoint::Complete, 429, http_date_in_ten_years()),
        (Endpoint::Output, 429, "99999999999999999999999".to_owned()),
    ] {
        let (server, project, state) = (Server::start(), fake_project(), StateDir::new());
        server.next(endpoint, Fault::status_with(code, "Retry-After", &wait));
        let id = server.enqueue(Job::new("raw").args("6f6b0a"));
        let first = Runner::in_project(&project).server(&server).state_dir(&state).start();
        server.wait_for("the fault", LATER, |state| state.of(endpoint).next().map(|_| ()));
        // It takes longer than the wait that would come without the server's wish.
        let other = server.enqueue(Job::new("slow").args("3 0.7"));
        assert_eq!(server.completed(&other, LATER).status, "success");
        first.kill();
        server.state(|state| assert!(state.execution(&id).completed.is_none(), "{wait} was not kept"));
        let second = Runner::in_project(&project).server(&server).state_dir(&state).start();
        assert_eq!(server.completed(&id, LATER).status, "success");
        assert!(second.stop(SOON).success());
        server.state(|state| assert_eq!(state.execution(&id).stdout(), "ok\n"));
    }
}

#[test]
fn a_chunk_that_is_refused_in_the_middle_leaves_those_before_and_after_it() {
    let (server, project) = (Server::start(), fake_project());
    let id = server.enqueue(Job::new("raw").args("610a @1 620a @1 630a"));
    let runner = start(&project, &server, &[]);
    shows(&server, &id, "a\n");
    server.next(Endpoint::Output, Fault::status(400));
    assert_eq!(server.completed(&id, LATER).status, "success");
    assert!(runner.stop(SOON).success());
    let text = server.state(|state| state.execution(&id).stdout());
    let notice = "[djangocommand: the service refused 2 bytes of output here: refused with status 400: 'told to \
                  answer 400']";
    assert_eq!(text, format!("a\n{notice}\nc\n"));
}

#[test]
fn a_key_that_is_revoked_while_something_runs_and_then_restored_costs_nothing() {
    let (server, project) = (Server::start(), fake_project());
    let id = server.enqueue(Job::new("slow").args("16 0.25"));
    let runner = start(&project, &server, &[]);
    shows(&server, &id, "line 2\n");
    server.revoke_key();
    let line = runner.wait_for_log("the service refuses the key: 'API key revoked' (status 401)", SOON);
    assert!(!line.contains("clock"), "{line}");
    let refused = |count: usize| {
        server.wait_for("denials", LATER, |state| {
            state.requests.iter().filter(|request| request.status == 401).nth(count - 1).map(|_| ())
        });
    };
    refused(3);
    server.restore_key();
    assert_eq!(server.completed(&id, LATER).status, "success");
    assert!(runner.stop(SOON).success());
    assert_eq!(server.state(|state| state.execution(&id).stdout()), numbered(16));
    let log = runner.log();
    assert_eq!(log.matches("the service refuses the key").count(), 1, "{log}");
    assert_eq!(log.matches("the service accepts the key").count(), 2, "{log}");
}

#[test]
fn what_runs_when_the_runner_is_suspended_goes_on_and_what_waits_is_run_afterwards() {
    let (server, project) = (Server::start(), fake_project());
    let id = server.enqueue(Job::new("slow").args("40 0.25"));
    let runner = start(&project, &server, &[]);
    shows(&server, &id, "line 2\n");
    server.suspend("invoice unpaid");
    runner.wait_for_log("has suspended this runner: 'invoice unpaid'", SOON);
    let next = server.enqueue(Job::new("echo"));
    assert_eq!(server.completed(&id, LATER).status, "success");
    server.state(|state| {
        assert_eq!(state.execution(&id).stdout(), numbered(40));
        assert!(state.execution(&next).started.is_none());
    });
    server.resume();
    assert_eq!(server.completed(&next, LATER).status, "success");
}

#[test]
fn a_denial_by_a_service_with_another_clock_says_how_far_ours_is_off() {
    for (ahead, said) in [(1200.0, "20 min behind"), (-5400.0, "90 min ahead of")] {
        let (server, project) = (Server::start(), fake_project());
        // Twice, or what is sent in the first seconds would pass for sent before the clock was set.
        server.set_clock_ahead(ahead, || ());
        server.set_clock_ahead(ahead, || ());
        let runner = start(&project, &server, &[]);
        let line = runner.wait_for_log("the service refuses the key", SOON);
        let expected = format!(
            "'timestamp too far from our clock' (status 401); the clock of this host is {said} the service's;"
        );
        assert!(line.contains(&expected), "{line}");
        server.set_clock_ahead(0.0, || ());
        runner.wait_for_log("the service accepts the key", SOON);
        let breaches = server.take_violations();
        assert!(!breaches.is_empty() && breaches.iter().all(|one| one.contains("the timestamp ")));
    }
}

fn start(project: &Project, server: &Server, settings: &[(&str, &str)]) -> Running {
    let runner = Runner::in_project(project).server(server).env("DJANGOCOMMAND_HEARTBEAT_INTERVAL", "5");
    let settings = settings.iter();
    settings.fold(runner, |runner, (name, value)| runner.env(&format!("DJANGOCOMMAND_{name}"), value)).start()
}

fn shows(server: &Server, id: &str, text: &str) {
    server.wait_for(text, LATER, |state| state.execution(id).stdout().contains(text).then_some(()));
}

/// What `slow COUNT` prints.
fn numbered(count: usize) -> String {
    (1..=count).map(|number| format!("line {number}\n")).collect()
}

/// As the server writes it.
fn http_date_in_ten_years() -> String {
    http_date(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() + 10 * 365 * 86_400)
}

/// A line to the service on which a request is torn after so many bytes, for the first few that are that long.
struct Line;

impl Line {
    fn to(server: &Server, torn_after: usize, mut times: usize) -> String {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let (url, target) = (format!("http://{}", listener.local_addr().unwrap()), server.url());
        // It ends with the test program: nobody waits for a line.
        thread::spawn(move || {
            for near in listener.incoming() {
                let (near, far) = (near.unwrap(), TcpStream::connect(&target["http://".len()..]).unwrap());
                let (mut answers, mut back) = (far.try_clone().unwrap(), near.try_clone().unwrap());
                let backwards = thread::spawn(move || drop(std::io::copy(&mut answers, &mut back)));
                if Line::forward(near, far, if times > 0 { torn_after } else { usize::MAX }) {
                    times -= 1;
                }
                backwards.join().unwrap();
            }
        });
        url
    }

    /// Whether the connection was torn; otherwise the runner has closed it.
    fn forward(mut near: TcpStream, mut far: TcpStream, torn_after: usize) -> bool {
        let (mut bytes, mut left) = ([0; 16 * 1024], torn_after);
        loop {
            let count = match near.read(&mut bytes) {
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::ConnectionReset => 0,
                Err(error) => panic!("{error}"),
            };
            if count == 0 || count > left {
                // Without its own reset the server's thread would wait for the rest.
                sys::reset_on_close(&near);
                sys::reset_on_close(&far);
                drop(far.shutdown(std::net::Shutdown::Both));
                return count > 0;
            }
            left -= count;
            if far.write_all(&bytes[..count]).is_err() {
                return false;
            }
        }
    }
}
