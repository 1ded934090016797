//! Failures: what each class of answer brings about, what is sent again, when and for how long.

use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::support::project::{Project, fake_project};
use crate::support::runner::{Runner, Running};
use crate::support::server::http::http_date;
use crate::support::server::{Endpoint, Fault, Job, Server, State};

/// For what is a matter of milliseconds.
const SOON: Duration = Duration::from_secs(20);
/// For what starts an interpreter and waits for polls and backoffs.
const LATER: Duration = Duration::from_secs(60);
/// The shortest interval between heartbeats that is allowed, in seconds.
const BEAT: u64 = 5;

#[test]
fn a_denial_on_any_endpoint_leaves_only_heartbeats_until_one_succeeds() {
    let (server, project) = (Server::start(), fake_project());
    for (endpoint, code) in Endpoint::ALL.into_iter().zip([401, 403].into_iter().cycle()) {
        server.next(endpoint, Fault::status(code));
    }
    let id = server.enqueue(Job::new("slow").args("8 0.4"));
    let runner = start(&project, &server);
    assert_eq!(server.completed(&id, LATER).exit_code, 0);
    assert!(runner.stop(SOON).success());
    server.state(|state| {
        let numbers: String = (1..=8).map(|number| format!("line {number}\n")).collect();
        assert_eq!(state.execution(&id).stdout(), numbers);
        let mut denials = 0;
        for pair in state.requests.windows(2).filter(|pair| matches!(pair[0].status, 401 | 403)) {
            assert_eq!(pair[1].endpoint, Endpoint::Heartbeat, "{}", state.log());
            assert!(pair[1].at - pair[0].at >= Duration::from_secs(1), "{}", state.log());
            denials += 1;
        }
        assert_eq!(denials, Endpoint::ALL.len());
    });
    // Each denial was news, since a heartbeat had succeeded before it.
    assert_eq!(
        runner.log().matches("the service refuses the key: 'told to answer 40").count(),
        Endpoint::ALL.len()
    );
}

#[test]
fn a_refused_key_is_tried_after_1_2_and_5_seconds_said_once_and_the_output_of_what_runs_waits() {
    let (server, project) = (Server::start(), fake_project());
    let id = server.enqueue(Job::new("slow").args("20 0.15"));
    let runner = start(&project, &server);
    server.wait_for("a line", LATER, |state| state.execution(&id).chunks.first_key_value().map(|_| ()));
    let body = String::from("{\"detail\": \"the quota of 100 runs is used up\"}");
    let quota = Fault::Status { code: 403, headers: Vec::new(), body };
    for endpoint in Endpoint::ALL {
        server.always(endpoint, quota.clone());
    }
    let denied = |count: usize| {
        server.wait_for("denials", LATER, |state| {
            state.requests.iter().filter(|request| request.status == 403).nth(count - 1).map(|_| ())
        });
    };
    denied(3);
    Endpoint::ALL.into_iter().for_each(|endpoint| server.heal(endpoint));
    assert_eq!(server.completed(&id, LATER).exit_code, 0);
    assert!(runner.stop(SOON).success());
    server.state(|state| {
        let first = state.requests.iter().position(|request| request.status == 403).unwrap();
        let times: Vec<Instant> = state.requests[first..first + 4].iter().map(|request| request.at).collect();
        assert_gaps(&times, &[1, 2, 5]);
        assert!(state.requests[first + 1..first + 4].iter().all(|r| r.endpoint == Endpoint::Heartbeat));
        let numbers: String = (1..=20).map(|number| format!("line {number}\n")).collect();
        assert_eq!(state.execution(&id).stdout(), numbers);
    });
    let log = runner.log();
    assert_eq!(log.matches("the service refuses the key: 'the quota of 100 runs is used up'").count(), 1);
    assert_eq!(log.matches("the service accepts the key").count(), 2);
}

#[test]
fn a_denial_that_heartbeats_do_not_meet_is_backed_off_from_all_the_same() {
    let (server, project) = (Server::start(), fake_project());
    server.always(Endpoint::Pending, Fault::status(403));
    let _runner = start(&project, &server);
    wait_for_requests(&server, Endpoint::Pending, 4);
    server.state(|state| {
        let polls: Vec<Instant> = state.of(Endpoint::Pending).map(|request| request.at).collect();
        assert_gaps(&polls[..4], &[1, 2, 5]);
    });
}

#[test]
fn a_wait_that_the_server_asks_for_is_kept_and_is_never_shorter_than_a_second() {
    let (server, project) = (Server::start(), fake_project());
    let ask =
        |endpoint, code, wait: &str| server.next(endpoint, Fault::status_with(code, "Retry-After", wait));
    ask(Endpoint::Heartbeat, 429, "2");
    ask(Endpoint::Start, 503, "2");
    ask(Endpoint::CancelStatus, 503, "3");
    ask(Endpoint::Complete, 429, "2");
    // What would be no wait at all must not become a flood.
    ask(Endpoint::Pending, 503, "0");
    ask(Endpoint::Pending, 429, "Sun, 06 Nov 1994 08:49:37 GMT");
    let id = server.enqueue(Job::new("slow").args("14 0.4"));
    let runner = start(&project, &server);
    // The time of a date runs from now on, and the other waits take some of it.
    wait_for_requests(&server, Endpoint::Heartbeat, 2);
    let date = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() + 9;
    ask(Endpoint::Output, 429, &http_date(date));
    assert_eq!(server.completed(&id, LATER).exit_code, 0);
    assert!(runner.stop(SOON).success());
    server.state(|state| {
        for (endpoint, least) in [
            (Endpoint::Heartbeat, 2.0),
            (Endpoint::Start, 2.0),
            (Endpoint::Output, 1.0),
            (Endpoint::CancelStatus, 3.0),
            (Endpoint::Complete, 2.0),
            (Endpoint::Pending, 1.0),
        ] {
            let all: Vec<_> = state.of(endpoint).collect();
            let pairs = all.windows(2).filter(|pair| matches!(pair[0].status, 429 | 503));
            let gaps: Vec<f64> = pairs.map(|pair| (pair[1].at - pair[0].at).as_secs_f64()).collect();
            assert!(!gaps.is_empty(), "{endpoint:?} met no fault");
            assert!(gaps.iter().all(|gap| *gap >= least), "{endpoint:?}: {gaps:?}");
        }
        let again = state.of(Endpoint::Output).nth(1).unwrap();
        assert!(again.unix >= date as f64, "{} is before {date}", again.unix);
    });
}

#[test]
fn a_wait_that_the_server_asks_for_is_not_cut_short_by_a_heartbeat_that_says_pending() {
    let (server, project) = (Server::start(), fake_project());
    server.enqueue(Job::new("echo"));
    server.next(Endpoint::Pending, Fault::status_with(429, "Retry-After", "7"));
    let _runner = configured(&project, &server, &[("MAX_RETRIES", "0")]);
    wait_for_requests(&server, Endpoint::Pending, 2);
    server.state(|state| {
        assert!(state.of(Endpoint::Heartbeat).count() >= 2, "a heartbeat came meanwhile");
        let polls: Vec<_> = state.of(Endpoint::Pending).collect();
        assert!(polls[1].at - polls[0].at >= Duration::from_secs(7), "{}", state.log());
    });
}

#[test]
fn heartbeat_sync_poll_and_start_are_retried_as_often_as_configured_and_then_wait_for_their_turn() {
    let project = fake_project();
    let cases = [
        (Endpoint::Heartbeat, Fault::status(500), "1", vec![1, BEAT, 1]),
        (Endpoint::Sync, Fault::status(502), "1", vec![1, BEAT, 1]),
        (Endpoint::Start, Fault::status(504), "1", vec![1, BEAT, 1]),
        (Endpoint::Pending, Fault::status(503), "2", vec![1, 2, 2, 1]),
        (Endpoint::Pending, Fault::status(500), "0", vec![2, 2]),
        // Retry-After does not make it come sooner than its turn once the retries are used up.
        (Endpoint::Heartbeat, Fault::status_with(429, "Retry-After", "1"), "0", vec![BEAT]),
        // Definitely refused is not tried again before its turn.
        (Endpoint::Sync, Fault::status(400), "3", vec![BEAT]),
    ];
    thread::scope(|scope| {
        for (endpoint, fault, retries, gaps) in cases {
            let project = &project;
            scope.spawn(move || {
                let server = Server::start();
                if endpoint == Endpoint::Start {
                    server.enqueue(Job::new("echo"));
                }
                server.always(endpoint, fault.clone());
                let _runner = configured(project, &server, &[("MAX_RETRIES", retries)]);
                wait_for_requests(&server, endpoint, gaps.len() + 1);
                let times: Vec<Instant> =
                    server.state(|state| state.of(endpoint).map(|request| request.at).collect());
                eprintln!("{endpoint:?} under {fault:?}");
                assert_gaps(&times[..=gaps.len()], &gaps);
            });
        }
    });
}

#[test]
fn output_and_completion_are_sent_until_acknowledged_whatever_max_retries_says() {
    let (server, project) = (Server::start(), fake_project());
    for endpoint in [Endpoint::Output, Endpoint::Complete] {
        for code in [429, 500, 502, 503, 504, 599] {
            server.next(endpoint, Fault::status(code));
        }
        server.next(endpoint, Fault::Hang);
        server.next(endpoint, Fault::Reset);
        server.next(endpoint, Fault::Truncated);
        server.next(endpoint, Fault::ProcessedThenStatus(502));
    }
    let ids: Vec<String> = (0..4).map(|_| server.enqueue(Job::new("both").args("out err"))).collect();
    let runner = configured(&project, &server, &[("MAX_RETRIES", "0"), ("REQUEST_TIMEOUT", "1")]);
    for id in &ids {
        assert_eq!(server.completed(id, LATER).exit_code, 0);
    }
    assert!(runner.stop(LATER).success());
    assert!(runner.state_dir().executions().is_empty());
    server.state(|state| {
        for id in &ids {
            let execution = state.execution(id);
            assert_eq!((execution.stdout(), execution.stderr()), ("out\n".into(), "err\n".into()));
        }
    });
}

#[test]
fn an_execution_whose_end_cannot_be_reported_keeps_no_other_from_running() {
    let (server, project) = (Server::start(), fake_project());
    server.always(Endpoint::Complete, Fault::status(500));
    let ids: Vec<String> = (0..4).map(|_| server.enqueue(Job::new("echo"))).collect();
    let runner = start(&project, &server);
    let completions = |count| wait_for_requests(&server, Endpoint::Complete, count);
    completions(4);
    let fifth = server.enqueue(Job::new("echo").args("fifth"));
    server.wait_for("the fifth's output", LATER, |state| {
        (state.execution(&fifth).stdout() == "[\"fifth\"]\n").then_some(())
    });
    server.heal(Endpoint::Complete);
    for id in ids.iter().chain([&fifth]) {
        assert_eq!(server.completed(id, LATER).exit_code, 0);
    }
    assert!(runner.stop(SOON).success());
    // The service cannot know that only one of the five still runs.
    let violations = server.take_violations();
    assert!(violations.len() == 1 && violations[0].ends_with("5 executions at a time"), "{violations:?}");
}

#[test]
fn a_slow_service_starves_neither_output_nor_cancel_checks_nor_heartbeats() {
    let (server, project) = (Server::start(), fake_project());
    let ids: Vec<String> = (0..4).map(|_| server.enqueue(Job::new("slow").args("60 0.5"))).collect();
    let _runner = configured(&project, &server, &[]);
    wait_for_requests(&server, Endpoint::Start, 4);
    for endpoint in [Endpoint::Heartbeat, Endpoint::CancelStatus, Endpoint::Output, Endpoint::Pending] {
        server.always(endpoint, Fault::Delay(Duration::from_millis(700)));
    }
    // Four cancel checks take longer than the two seconds after which each is due again.
    server.wait_for("five lines of each while it runs", LATER, |state| {
        let lines = |id: &String| state.execution(id).stdout().lines().count();
        ids.iter().all(|id| lines(id) >= 5 && state.execution(id).is_running()).then_some(())
    });
    server.state(|state| {
        for id in &ids {
            let asked = state.of(Endpoint::CancelStatus).filter(|r| r.execution.as_ref() == Some(id)).count();
            assert!(asked >= 1, "{}", state.log());
        }
        let beats: Vec<Instant> = state.of(Endpoint::Heartbeat).map(|request| request.at).collect();
        let late = |pair: &[Instant]| pair[1] - pair[0] > Duration::from_secs(BEAT + 3);
        assert!(!beats.windows(2).any(late), "{}", state.log());
    });
}

#[test]
fn an_execution_that_is_always_denied_does_not_keep_the_others_from_the_service() {
    let (server, project) = (Server::start(), fake_project());
    server.always(Endpoint::Complete, Fault::status(403));
    let denied = server.enqueue(Job::new("echo"));
    let other = server.enqueue(Job::new("slow").args("60 0.5"));
    let _runner = configured(&project, &server, &[]);
    server.wait_for("a denied completion", LATER, |state| {
        state.of(Endpoint::Complete).find(|r| r.execution.as_ref() == Some(&denied)).map(|_| ())
    });
    let lines = |state: &State| state.execution(&other).stdout().lines().count();
    let before = server.state(lines);
    server
        .wait_for("ten more lines of the other", LATER, |state| (lines(state) >= before + 10).then_some(()));
}

#[test]
fn a_refusal_that_lasts_is_said_at_its_beginning_and_at_its_end() {
    let (server, project) = (Server::start(), fake_project());
    server.always(Endpoint::Pending, Fault::status(404));
    let id = server.enqueue(Job::new("echo"));
    let runner = start(&project, &server);
    wait_for_requests(&server, Endpoint::Pending, 3);
    server.heal(Endpoint::Pending);
    assert_eq!(server.completed(&id, LATER).exit_code, 0);
    assert!(runner.stop(SOON).success());
    let log = runner.log();
    let begin = "the service does not accept the poll: refused with status 404: 'told to answer 404'";
    assert_eq!((log.matches(begin).count(), log.matches("accepts the poll again").count()), (1, 1), "{log}");
}

#[test]
fn a_server_error_or_a_429_is_tried_again_on_every_endpoint_and_nothing_is_lost_or_done_twice() {
    let project = fake_project();
    thread::scope(|scope| {
        for code in [500, 502, 503, 504, 429] {
            let project = &project;
            scope.spawn(move || {
                let server = Server::start();
                Endpoint::ALL.into_iter().for_each(|endpoint| server.next(endpoint, Fault::status(code)));
                // Long enough to be asked about twice.
                let id = server.enqueue(Job::new("slow").args("12 0.5"));
                let runner = configured(project, &server, &[]);
                assert_eq!(server.completed(&id, LATER).exit_code, 0, "{code}");
                assert!(runner.stop(SOON).success(), "{code}");
                assert!(runner.state_dir().executions().is_empty(), "{code}");
                server.state(|state| {
                    let numbers: String = (1..=12).map(|number| format!("line {number}\n")).collect();
                    assert_eq!(state.execution(&id).stdout(), numbers, "{code}");
                    for endpoint in Endpoint::ALL {
                        let failures = state.of(endpoint).filter(|request| request.status == code).count();
                        assert_eq!(failures, 1, "{endpoint:?} {}", state.log());
                        assert!(state.of(endpoint).count() > 1, "{endpoint:?} {}", state.log());
                    }
                    assert_eq!(state.of(Endpoint::Start).count(), 2, "{}", state.log());
                    assert_eq!(state.of(Endpoint::Complete).count(), 2, "{}", state.log());
                });
            });
        }
    });
}

#[test]
fn a_start_that_is_refused_gives_the_execution_up_and_what_stays_on_the_list_is_tried_a_heartbeat_later() {
    let (server, project, codes) = (Server::start(), fake_project(), [400, 404, 409, 410]);
    codes.iter().for_each(|code| server.next(Endpoint::Start, Fault::status(*code)));
    let ids = codes.map(|_| server.enqueue(Job::new("echo")));
    let runner = configured(&project, &server, &[]);
    ids.iter().for_each(|id| assert_eq!(server.completed(id, LATER).exit_code, 0));
    server.state(|state| {
        for id in &ids {
            let of_id = state.of(Endpoint::Start).filter(|request| request.execution.as_ref() == Some(id));
            let times: Vec<Instant> = of_id.map(|request| request.at).collect();
            assert_eq!(times.len(), 2, "{}", state.log());
            assert!(times[1] - times[0] >= Duration::from_secs(BEAT), "{}", state.log());
        }
    });
    said_in_each_case(&runner, "is given up", &codes);
}

#[test]
fn a_chunk_of_an_execution_that_the_service_does_not_know_is_not_sent_again_and_the_end_is_reported() {
    let (server, project, codes) = (Server::start(), fake_project(), [404, 410]);
    chunk_is_refused(&server, &project, &codes);
}

/// A number stands for one content, so the service has that chunk already.
#[test]
fn a_chunk_that_the_service_says_it_has_is_not_sent_again_and_the_end_is_reported() {
    let (server, project) = (Server::start(), fake_project());
    let runner = chunk_is_refused(&server, &project, &[409]);
    let log = runner.log();
    assert!(!log.contains(" warning ") && !log.contains(" error "), "{log}");
}

fn chunk_is_refused(server: &Server, project: &Project, codes: &[u16]) -> Running {
    codes.iter().for_each(|code| server.next(Endpoint::Output, Fault::status(*code)));
    // One write and so one chunk, which Python's `print` is not.
    let ids: Vec<String> = codes.iter().map(|_| server.enqueue(Job::new("raw").args("6f6b0a"))).collect();
    let runner = configured(project, server, &[]);
    for id in &ids {
        assert_eq!(server.completed(id, LATER).exit_code, 0);
        assert_eq!(server.state(|state| state.execution(id).stdout()), "");
    }
    assert_eq!(server.state(|state| state.of(Endpoint::Output).count()), codes.len());
    let said: Vec<u16> = codes.iter().copied().filter(|code| *code != 409).collect();
    said_in_each_case(&runner, "the service wants no more of its output", &said);
    runner
}

#[test]
fn a_completion_that_is_refused_is_not_sent_again_and_nothing_is_left_of_the_execution() {
    let (server, project, codes) = (Server::start(), fake_project(), [400, 404, 409, 410]);
    codes.iter().for_each(|code| server.next(Endpoint::Complete, Fault::ProcessedThenStatus(*code)));
    let ids = codes.map(|_| server.enqueue(Job::new("echo")));
    let runner = configured(&project, &server, &[]);
    ids.iter().for_each(|id| assert_eq!(server.completed(id, LATER).exit_code, 0));
    // Another one is run afterwards, and by then each of them would have been sent again.
    let after = server.enqueue(Job::new("slow").args("3 0.7"));
    assert_eq!(server.completed(&after, LATER).exit_code, 0);
    assert!(runner.stop(SOON).success());
    assert!(runner.state_dir().executions().is_empty());
    server.state(|state| assert_eq!(state.of(Endpoint::Complete).count(), 5, "{}", state.log()));
    // 409: an earlier report got through, which is as good as an acknowledgement.
    said_in_each_case(&runner, "the service does not want to know that it ended", &[400, 404, 410]);
}

#[test]
fn a_chunk_too_large_for_the_server_is_lost_alone_and_a_line_in_its_place_says_so() {
    let project = fake_project();
    for code in [400, 413] {
        let server = Server::start();
        server.next(Endpoint::Output, Fault::status(code));
        // "out" and "err", each a line in one write.
        let id = server.enqueue(Job::new("raw").args("6f75740a 2:6572720a"));
        let runner = start(&project, &server);
        assert_eq!(server.completed(&id, LATER).exit_code, 0);
        assert!(runner.stop(SOON).success());
        let (stdout, stderr, numbers) = server.state(|state| {
            let execution = state.execution(&id);
            (execution.stdout(), execution.stderr(), execution.chunks.keys().copied().collect::<Vec<_>>())
        });
        // Either stream may be the first.
        let why = format!("refused with status {code}: 'told to answer {code}'");
        let line = format!("[djangocommand: the service refused 4 bytes of output here: {why}]\n");
        let expected = [("out\n", &*line), (&*line, "err\n")];
        assert!(expected.contains(&(&*stdout, &*stderr)), "{stdout:?} {stderr:?}");
        assert_eq!(numbers, [1, 2]);
        assert!(runner.log().contains(&format!("chunk 1 of its output is lost: {why}")));
    }
}

fn start(project: &Project, server: &Server) -> Running {
    Runner::in_project(project).server(server).start()
}

/// With short intervals and the given settings.
fn configured(project: &Project, server: &Server, settings: &[(&str, &str)]) -> Running {
    let mut runner =
        Runner::in_project(project).server(server).env("DJANGOCOMMAND_HEARTBEAT_INTERVAL", BEAT.to_string());
    for (name, value) in settings {
        runner = runner.env(&format!("DJANGOCOMMAND_{name}"), value);
    }
    runner.start()
}

/// That something is said once with each of these statuses, and never else.
fn said_in_each_case(runner: &Running, text: &str, codes: &[u16]) {
    let log = runner.log();
    assert_eq!(log.matches(text).count(), codes.len(), "{log}");
    for code in codes {
        assert_eq!(log.matches(&format!("{text}: refused with status {code}")).count(), 1, "{code}: {log}");
    }
}

fn wait_for_requests(server: &Server, endpoint: Endpoint, count: usize) {
    let look = |state: &State| state.of(endpoint).nth(count - 1).map(|_| ());
    server.wait_for(&format!("{endpoint:?} number {count}"), LATER, look);
}

/// No timer fires early. That one is late proves little on a busy machine, so there is slack on that side.
fn assert_gaps(times: &[Instant], seconds: &[u64]) {
    let gaps: Vec<f64> = times.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect();
    assert_eq!(gaps.len(), seconds.len());
    // A wait is never shorter than it should be; how much longer is a matter of the machine's load.
    let holds = |(gap, due): (&f64, &u64)| (*due as f64 - 0.01..*due as f64 + 3.0).contains(gap);
    assert!(gaps.iter().zip(seconds).all(holds), "{gaps:?} instead of {seconds:?}");
}
