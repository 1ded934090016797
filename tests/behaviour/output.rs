//! Output: bytes become text with times, whole, soon, in chunks that a web server takes; or not at all.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::support::canonical::hex;
use crate::support::project::{Project, fake_project};
use crate::support::runner::Runner;
use crate::support::server::{Endpoint, Fault, Job, Server, State};

/// For anything that starts interpreters, on a machine that is busy with other tests.
const WITHIN: Duration = Duration::from_secs(60);
/// The largest body that a request may have.
const BODY_MAX: usize = 512 * 1024;
/// What stands in each stream of a metadata-only execution.
const NOT_CAPTURED: &str = "(metadata-only mode, no output captured)\n";

#[test]
fn whatever_bytes_a_command_writes_become_text() {
    let all: Vec<u8> = (0..=255).collect();
    let all_text = String::from_utf8_lossy(&all).replace('\r', "\n").replace('\0', "\u{fffd}");
    let all_args = format!("{} 2:{}", hex(&all), hex(&all));
    let cases = [
        // CR LF, a lone CR, a CR at the end of a write with its LF in the next one, a CR at the very end.
        ("610d0a620d63 0d @0.2 0a64 0d0d @0.2 0a0d", "a\nb\nc\nd\n\n\n", ""),
        // Characters cut over writes, on both streams at a time, and one that is never finished.
        ("e282 2:c3 @0.2 ac 2:bc @0.2 f09f9880 2:f09f @0.2 2:98", "€😀", "ü\u{fffd}"),
        ("61ff62c3280a 2:eda0800a", "a\u{fffd}b\u{fffd}(\n", "\u{fffd}\u{fffd}\u{fffd}\n"),
        ("61000a00", "a\u{fffd}\n\u{fffd}", ""),
        ("1b5b326a0a7f0807", "\u{1b}[2j\n\u{7f}\u{8}\u{7}", ""),
        (&all_args, &all_text, &all_text),
    ];
    let (server, project) = (Server::start(), fake_project());
    let ids = cases.map(|(args, ..)| server.enqueue(Job::new("raw").args(args)));
    let _runner = Runner::in_project(&project).server(&server).start();
    for (id, (args, stdout, stderr)) in ids.iter().zip(cases) {
        assert_eq!(server.completed(id, WITHIN).status, "success");
        server.state(|state| {
            let execution = state.execution(id);
            assert_eq!(
                (execution.stdout().as_str(), execution.stderr().as_str()),
                (stdout, stderr),
                "{args}"
            );
        });
    }
}

#[test]
fn characters_that_are_cut_by_a_pause_at_any_of_their_bytes_arrive_whole() {
    const TEXT: &str = "aü€😀z";
    let (server, project) = (Server::start(), fake_project());
    let cut_at = |offset| {
        let (before, after) = TEXT.as_bytes().split_at(offset);
        server.enqueue(Job::new("raw").args(&format!("{} @0.3 {}", hex(before), hex(after))))
    };
    let ids: Vec<String> = (0..=TEXT.len()).map(cut_at).collect();
    let _runner = Runner::in_project(&project).server(&server).start();
    for (offset, id) in ids.iter().enumerate() {
        assert_eq!(server.completed(id, WITHIN).status, "success");
        assert_eq!(server.state(|state| state.execution(id).stdout()), TEXT, "cut at {offset}");
    }
}

#[test]
fn a_line_has_the_time_of_its_first_character_and_its_continuation_none() {
    let (server, project) = (Server::start(), fake_project());
    // "A", a second later "B\nC\n", and another second later "D\n".
    let id = server.enqueue(Job::new("raw").args("41 @1 420a430a @1 440a"));
    let _runner = Runner::in_project(&project).server(&server).start();
    let end = server.completed(&id, WITHIN);
    server.state(|state| {
        let execution = state.execution(&id);
        let pieces: Vec<(&str, bool)> = execution
            .segments(false)
            .map(|piece| (piece.content.as_str(), piece.timestamp.is_some()))
            .collect();
        assert_eq!(pieces, [("A", true), ("B\n", false), ("C\n", true), ("D\n", true)]);
        let times: Vec<f64> = execution.segments(false).filter_map(|piece| piece.timestamp).collect();
        assert!(times.is_sorted(), "{times:?}");
        let pauses = [times[1] - times[0], times[2] - times[1]];
        assert!(pauses.iter().all(|pause| (0.6..5.0).contains(pause)), "{pauses:?}");
        // Not before the service was told of the start, not after it had the chunk.
        assert!(times[0] >= execution.started_unix.unwrap());
        let (mut chunks, began) = (execution.chunks.values(), execution.started.unwrap());
        assert!(
            chunks.all(|chunk| chunk.segments.iter().all(|s| s.timestamp.is_none_or(|t| t <= chunk.unix)))
        );
        assert!(end.at.duration_since(began) >= Duration::from_secs(2));
    });
}

#[test]
fn a_prompt_and_ordinary_lines_are_on_the_server_while_the_command_runs() {
    let (server, project) = (Server::start(), fake_project());
    let prompt = server.enqueue(Job::new("prompt"));
    let slow = server.enqueue(Job::new("slow").args("4 0.7"));
    let _runner = Runner::in_project(&project).server(&server).start();
    server.wait_for("the prompt", WITHIN, |state| {
        (state.execution(&prompt).stdout() == "Password: ").then_some(())
    });
    server.completed(&slow, WITHIN);
    // The promise is 1 s for a prompt and 0.5 s for lines; the slack is for a machine that is busy with other tests.
    for (id, what, limit) in [(&prompt, "a prompt", 1.0), (&slow, "a line", 0.9)] {
        let delays = server.state(|state| delays(state, id));
        let worst = delays.iter().copied().fold(0.0, f64::max);
        println!("{what} was on the server after {worst:.3} s at the latest, of {delays:.3?}");
        assert!(worst < limit, "{what}: {delays:?}");
    }
    let lines = server.state(|state| delays(state, &slow).len());
    assert_eq!(lines, 4, "each line is sent as it comes");
    server.state(|state| assert!(state.execution(&prompt).is_running()));
}

/// From the arrival of a chunk's first line at the shim to the chunk's arrival at the server, in seconds.
fn delays(state: &State, id: &str) -> Vec<f64> {
    let chunks = state.execution(id).chunks.values();
    chunks.filter_map(|chunk| Some(chunk.unix - chunk.segments[0].timestamp?)).collect()
}

#[test]
fn fifty_megabytes_arrive_whole_in_bodies_below_512_kib() {
    let (server, project) = (Server::counting(), fake_project());
    let id = server.enqueue(Job::new("big").args("50"));
    let _runner = Runner::in_project(&project).server(&server).start();
    assert_eq!(server.completed(&id, 2 * WITHIN).status, "success");
    let mut sha256 = Sha256::new();
    let (mut left, mut block) = (50_000_000, String::new());
    for number in 0.. {
        writeln!(block, "{number:078}").unwrap();
        if block.len() >= left {
            sha256.update(&block[..left]);
            break;
        }
        if block.len() > 1_000_000 {
            sha256.update(&block);
            left -= block.len();
            block.clear();
        }
    }
    server.state(|state| {
        let execution = state.execution(&id);
        assert_eq!((execution.bytes(false), execution.bytes(true)), (50_000_000, 0));
        assert_eq!(execution.sha256(false), hex(&sha256.finalize()));
        let largest = state.of(Endpoint::Output).map(|request| request.body_len).max().unwrap();
        println!("the largest body had {largest} bytes");
        assert!((100_000..BODY_MAX).contains(&largest), "{largest}");
    });
}

#[test]
fn a_metadata_only_execution_shows_and_keeps_nothing_but_its_exit_code() {
    let (server, project) = (Server::start(), fake_project());
    let commands = fs::read_to_string(project.dir().join("commands.py")).unwrap();
    let leak = "\n\ndef leak(code):\n    print('TOP-SECRET')\n    print('TOP-SECRET', file=sys.stderr)\n    \
                sys.exit(int(code))\n";
    // `leak2` is metadata-only by setting, `leak` where the execution says so.
    project.write("commands.py", &format!("{commands}{leak}{}", leak.replace("leak", "leak2")));
    project.settings("DJANGOCOMMAND_METADATAONLY_COMMANDS = ('leak2',)");
    // Without an acknowledged completion the directories stay to be looked at.
    server.always(Endpoint::Complete, Fault::status(503));
    let jobs = [
        (Job::new("leak").args("3").metadata_only(), 3),
        (Job::new("leak2").args("0"), 0),
        (Job::new("leak2").args("4").metadata_only(), 4),
    ];
    let cases = jobs.map(|(job, code)| (server.enqueue(job), code));
    let runner = Runner::in_project(&project).server(&server).start();
    for (id, _) in &cases {
        server.wait_for("an attempt to complete", WITHIN, |state| {
            state.of(Endpoint::Complete).find(|request| request.execution.as_ref() == Some(id)).map(|_| ())
        });
    }
    assert_eq!(runner.state_dir().executions().len(), 3);
    assert!(!holds(runner.state_dir().path(), "TOP-SECRET"));
    assert!(holds(runner.state_dir().path(), "leak2"), "the search finds what is there");
    server.heal(Endpoint::Complete);
    for (id, code) in &cases {
        let end = server.completed(id, WITHIN);
        let status = if *code == 0 { "success" } else { "failed" };
        assert_eq!((end.exit_code, end.status.as_str()), (*code, status));
        server.state(|state| {
            let texts: Vec<(u64, bool, &str)> = state
                .execution(id)
                .chunks
                .iter()
                .flat_map(|(number, chunk)| {
                    chunk.segments.iter().map(|segment| (*number, chunk.is_stderr, segment.content.as_str()))
                })
                .collect();
            assert_eq!(texts, [(1, false, NOT_CAPTURED), (2, true, NOT_CAPTURED)]);
        });
    }
    assert!(!runner.log().contains("TOP-SECRET"));
}

#[test]
fn a_metadata_only_process_begins_when_the_service_has_the_text_that_stands_for_its_output() {
    let (server, project) = (Server::start(), fake_project());
    let proof = project.dir().join("proof");
    server.always(Endpoint::Output, Fault::status(503));
    let id = server.enqueue(Job::new("touch").args(proof.to_str().unwrap()).metadata_only());
    let _runner = Runner::in_project(&project).server(&server).start();
    // The second attempt comes a second after the first: time enough for a process that does not wait.
    server.wait_for("two attempts to send", WITHIN, |state| state.of(Endpoint::Output).nth(1).map(|_| ()));
    assert!(!proof.exists());
    server.heal(Endpoint::Output);
    assert_eq!(server.completed(&id, WITHIN).status, "success");
    assert!(ran_once(&project, "proof"));
}

fn ran_once(project: &Project, name: &str) -> bool {
    fs::read_to_string(project.dir().join(name)).is_ok_and(|text| text == "ran\n")
}

/// Whether any file at or below a path holds a text.
fn holds(path: &Path, text: &str) -> bool {
    if path.is_dir() {
        return fs::read_dir(path).unwrap().any(|entry| holds(&entry.unwrap().path(), text));
    }
    let bytes = fs::read(path).unwrap();
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}
