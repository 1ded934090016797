//! Crashes: whatever is killed at whatever instant, the next runner finds the directory and nothing is lost or run twice.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::json;
use tempfile::TempDir;

use crate::support::project::{Project, fake_project};
use crate::support::runner::{Runner, Running};
use crate::support::server::{Completion, Endpoint, Fault, Job, Server, State, fresh_uuid_v4};
use crate::support::state_dir::StateDir;
use crate::support::sys;
use crate::support::wait::{eventually, pause};

/// For what is a matter of milliseconds.
const SOON: Duration = Duration::from_secs(20);
/// For what starts an interpreter and waits for polls and backoffs.
const LATER: Duration = Duration::from_secs(60);

/// One command: `work FILE COUNT SECONDS` writes its PID into FILE, one line for each time that it is run, and prints
/// COUNT numbered lines, each third on stderr, one each SECONDS. Before the last one it waits until there is no file
/// called `hold`.
const COMMANDS: &str = "
import os, sys, time

def names():
    return ['work']

def work(path, count, seconds):
    with open(path, 'a') as runs:
        runs.write('%d\\n' % os.getpid())
    for number in range(int(count)):
        # One write a line, which print is not.
        (sys.stderr if number % 3 == 2 else sys.stdout).write('line %d\\n' % number)
        time.sleep(float(seconds))
        while number == int(count) - 2 and os.path.exists('hold'):
            time.sleep(0.01)
";

#[test]
fn a_killed_runner_disturbs_no_command_and_the_next_one_delivers_each_line_once() {
    let stage = Stage::new();
    stage.project.write("hold", "");
    let (id, first) = stage.running("30", "0.05");
    let (pid, shims) = (stage.only_pid(), first.state_dir().shims());
    first.kill();
    // What is printed while no runner lives must be neither lost nor hold up the command.
    stage.wait_for_output_file("line 28");
    assert!(is_alive(pid), "the command died with its runner");
    let second = stage.runner().start();
    second.wait_for_log(&format!("execution {id} (work): taken over from an earlier runner"), SOON);
    assert_eq!((second.state_dir().shims(), stage.only_pid()), (shims, pid));
    fs::remove_file(stage.project.dir().join("hold")).unwrap();
    let end = stage.server.completed(&id, LATER);
    assert_eq!((end.exit_code, end.status.as_str()), (0, "success"));
    assert_eq!(stage.streams(&id), printed(30));
    stage.assert_over(&second);
    assert_eq!(stage.runs().len(), 1);
}

#[test]
fn what_was_never_surely_begun_is_reported_as_interrupted_and_never_run() {
    // Killed before the service has `start`, and after, but before the runner knows that it has.
    for fault in [Fault::Hang, Fault::Delay(LATER)] {
        let stage = Stage::new();
        stage.server.next(Endpoint::Start, fault.clone());
        let id = stage.server.enqueue(stage.job("1", "0"));
        let first = stage.runner().start();
        stage.wait_for_request(Endpoint::Start, 1);
        assert_eq!(stage.state.executions().len(), 1, "written down before the service is told");
        first.kill();
        stage.server.release();
        let second = stage.runner().start();
        let end = stage.server.completed(&id, LATER);
        assert_eq!((end.exit_code, end.status.as_str()), (-1, "failed"), "{fault:?}");
        let (stdout, stderr) = stage.streams(&id);
        assert_eq!(stdout, "");
        assert!(stderr.contains("interrupted before the command began"), "{stderr}");
        stage.assert_over(&second);
        assert!(stage.runs().is_empty(), "{fault:?}");
    }
}

#[test]
fn a_killed_shim_takes_its_command_along_and_what_it_had_captured_is_delivered() {
    let stage = Stage::new();
    // Silent from here on: a command that prints would die of the broken pipe, whatever its shim had arranged.
    stage.project.write("hold", "");
    let (id, runner) = stage.running("10", "0.01");
    stage.wait_for_output_file("line 8\\n");
    stage.kill_shim();
    let end = stage.server.completed(&id, LATER);
    stage.assert_died_with_its_shim(&id, &end);
    runner.wait_for_log("its shim was killed", SOON);
    stage.assert_over(&runner);
}

#[test]
fn a_shim_that_is_killed_before_its_command_began_is_reported_as_interrupted_and_not_as_the_death_of_a_command()
 {
    // The shim, and nothing else, ends before its first own instruction.
    const DIES: &str = r#"
        #include <fcntl.h>
        #include <signal.h>
        #include <string.h>
        #include <unistd.h>

        __attribute__((constructor)) static void die(void) {
            char line[100] = "";
            read(open("/proc/self/cmdline", O_RDONLY), line, sizeof line - 1);
            if (!strcmp(line, "djangocommand") && !strcmp(line + strlen(line) + 1, "shim"))
                kill(getpid(), SIGKILL);
        }
    "#;
    let stage = Stage::new();
    let library = TempDir::new().unwrap();
    fs::write(library.path().join("dies.c"), DIES).unwrap();
    let built = Command::new("cc")
        .args(["-w", "-shared", "-fPIC", "-o", "dies.so", "dies.c"])
        .current_dir(library.path())
        .status();
    assert!(built.expect("the tests need a C compiler").success());
    let id = stage.server.enqueue(stage.job("1", "0"));
    let runner = stage.runner().env("LD_PRELOAD", library.path().join("dies.so")).start();
    let end = stage.server.completed(&id, LATER);
    assert_eq!((end.exit_code, end.status.as_str()), (-1, "failed"));
    let interrupted = "[djangocommand: interrupted before the command began; it was not run]\n".to_owned();
    assert_eq!(stage.streams(&id), (String::new(), interrupted));
    stage.assert_over(&runner);
    assert!(stage.runs().is_empty());
}

#[test]
fn a_supervisor_that_sends_sigterm_to_everything_does_not_make_a_shim_cancel_its_command() {
    let stage = Stage::new();
    let (id, runner) = stage.running("20", "0.1");
    for pid in stage.state.shims() {
        assert!(sys::kill(pid, libc::SIGTERM));
    }
    assert_eq!(stage.server.completed(&id, LATER).status, "success");
    assert_eq!(stage.streams(&id), printed(20));
    assert!(runner.stop(LATER).success());
}

#[test]
fn after_runner_and_shim_are_both_killed_the_next_runner_reports_the_failure_with_all_captured_output() {
    let stage = Stage::new();
    // Refused meanwhile, so that everything must come from the disk.
    stage.server.always(Endpoint::Output, Fault::status(503));
    let id = stage.server.enqueue(stage.job("600", "0.05"));
    let first = stage.runner().start();
    stage.wait_for_output_file("line 20");
    first.kill();
    stage.kill_shim();
    let second = stage.runner().start();
    stage.wait_for_request(Endpoint::Output, 2);
    stage.server.heal(Endpoint::Output);
    let end = stage.server.completed(&id, LATER);
    stage.assert_died_with_its_shim(&id, &end);
    assert!(stage.streams(&id).0.contains("line 19\n"));
    stage.assert_over(&second);
}

#[test]
fn a_chunk_number_keeps_its_content_when_a_runner_dies_between_sending_and_acknowledgement() {
    let stage = Stage::new();
    // The service keeps the chunk and says that it did not: it then compares what comes again under that number.
    stage.server.always(Endpoint::Output, Fault::ProcessedThenStatus(503));
    let id = stage.server.enqueue(stage.job("60", "0.05"));
    for runner_number in 1..=3 {
        let runner = stage.runner().start();
        // Twice, and the command prints on: more output must not find its way into the number that is out.
        stage.wait_for_request(Endpoint::Output, 2 * runner_number);
        runner.kill();
    }
    stage.server.state(|state| assert_eq!(state.execution(&id).chunks.len(), 1));
    stage.server.heal(Endpoint::Output);
    let last = stage.runner().start();
    assert_eq!(stage.server.completed(&id, LATER).exit_code, 0);
    assert_eq!(stage.streams(&id), printed(60));
    stage.assert_over(&last);
    assert_eq!(stage.runs().len(), 1);
}

#[test]
fn a_completion_whose_answer_was_lost_with_the_runner_is_cleaned_up_by_the_next_without_a_second_run() {
    let stage = Stage::new();
    stage.server.next(Endpoint::Complete, Fault::Delay(LATER));
    let id = stage.server.enqueue(stage.job("3", "0"));
    let first = stage.runner().start();
    stage.server.completed(&id, LATER);
    first.kill();
    assert_eq!(stage.state.executions().len(), 1);
    let second = stage.runner().start();
    stage.wait_for_request(Endpoint::Complete, 2);
    stage.assert_over(&second);
    assert_eq!((stage.runs().len(), stage.streams(&id)), (1, printed(3)));
}

#[test]
fn what_is_not_of_this_version_is_left_alone_with_an_error_and_stops_nobody() {
    let stage = Stage::new();
    let executions = stage.state.path().join("executions");
    let future = executions.join(fresh_uuid_v4());
    fs::create_dir_all(&future).unwrap();
    let spec = json!({
        "version": 2,
        "id": future.file_name().unwrap().to_str().unwrap(),
        "command": "work",
        "task": {"reject": {"reason": "none", "text": "none"}},
    });
    fs::write(future.join("spec.json"), spec.to_string()).unwrap();
    let mut left = vec![future.clone()];
    for content in ["{\"version\":1,\"id\":\"0b8", "[]", "\u{0}\u{1}"] {
        let dir = executions.join(fresh_uuid_v4());
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("spec.json"), content).unwrap();
        left.push(dir);
    }
    fs::write(executions.join("file"), "no directory").unwrap();
    std::os::unix::fs::symlink("nowhere", executions.join("link")).unwrap();
    // What is not named by an id is none of the runner's business.
    fs::create_dir(executions.join("lost+found")).unwrap();

    let id = stage.server.enqueue(stage.job("1", "0"));
    let runner = stage.runner().start();
    assert_eq!(stage.server.completed(&id, LATER).exit_code, 0);
    assert!(runner.stop(LATER).success());
    let log = runner.log();
    for path in &left {
        let complaint = log.lines().find(|line| line.contains(&*path.to_string_lossy()));
        let complaint = complaint.unwrap_or_else(|| panic!("no word about {}", path.display()));
        assert!(complaint.contains(" error ") && complaint.contains("is left alone"), "{complaint}");
        assert!(path.exists(), "{} is gone", path.display());
        assert_eq!(complaint.contains("a newer version wrote it (format 2)"), *path == future, "{complaint}");
    }
    assert_eq!(fs::read_to_string(future.join("spec.json")).unwrap(), spec.to_string());
    assert!(executions.join("file").exists() && executions.join("lost+found").exists());
    assert_eq!(fs::read_dir(&future).unwrap().count(), 1, "nothing was put into it either");
}

#[test]
fn a_runner_that_is_killed_at_random_instants_loses_no_byte_and_runs_nothing_twice() {
    let seed = u64::from_str_radix(&fresh_uuid_v4()[..8], 16).unwrap();
    // Shown only if the test fails.
    eprintln!("seed {seed}");
    let mut random = Random(seed);
    let stage = Stage::new();
    let (id, mut runner) = stage.running("2500", "0.002");
    for _ in 0..15 {
        pause(Duration::from_millis(random.below(600)));
        runner.kill();
        runner = stage.runner().start();
    }
    let end = stage.server.completed(&id, LATER);
    assert_eq!((end.exit_code, end.status.as_str()), (0, "success"));
    assert!(stage.streams(&id) == printed(2500), "seed {seed}: what arrived is not what was printed");
    stage.assert_over(&runner);
    assert_eq!(stage.runs().len(), 1, "seed {seed}");
}

/// A service, a project and the state directory that a row of runners shares.
struct Stage {
    server: Server,
    state: StateDir,
    project: Project,
}

impl Stage {
    fn new() -> Self {
        let project = fake_project();
        project.write("commands.py", COMMANDS);
        Stage { server: Server::start(), state: StateDir::new(), project }
    }

    fn runner(&self) -> Runner<'_> {
        Runner::in_project(&self.project).server(&self.server).state_dir(&self.state)
    }

    fn job(&self, count: &str, seconds: &str) -> Job {
        Job::new("work").args(&format!("'{}' {count} {seconds}", self.run_file().display()))
    }

    /// A runner whose command has begun to print.
    fn running(&self, count: &str, seconds: &str) -> (String, Running) {
        let id = self.server.enqueue(self.job(count, seconds));
        let runner = self.runner().start();
        self.server.wait_for("the first lines", LATER, |state| {
            let execution = state.execution(&id);
            (execution.stdout().contains("line 1\n") && !execution.stderr().is_empty()).then_some(())
        });
        (id, runner)
    }

    fn run_file(&self) -> PathBuf {
        self.project.dir().join("runs")
    }

    /// The PIDs of all processes that the command ever was.
    fn runs(&self) -> Vec<u32> {
        let runs = fs::read_to_string(self.run_file()).unwrap_or_default();
        runs.lines().map(|pid| pid.parse().unwrap()).collect()
    }

    fn only_pid(&self) -> u32 {
        let runs = self.runs();
        assert_eq!(runs.len(), 1);
        runs[0]
    }

    fn streams(&self, id: &str) -> (String, String) {
        self.server.state(|state| {
            let execution = state.execution(id);
            (execution.stdout(), execution.stderr())
        })
    }

    fn wait_for_request(&self, endpoint: Endpoint, number: usize) {
        let look = |state: &State| state.of(endpoint).nth(number - 1).map(|_| ());
        self.server.wait_for(&format!("{endpoint:?} number {number}"), LATER, look);
    }

    /// Waits until the shim has written `text` down.
    fn wait_for_output_file(&self, text: &str) {
        eventually(&format!("{text:?} in the output file"), || {
            let files = self.state.executions().into_iter().map(|dir| dir.join("output"));
            files.filter_map(|file| fs::read_to_string(file).ok()).any(|output| output.contains(text))
        });
    }

    fn kill_shim(&self) {
        let shims = self.state.shims();
        assert_eq!(shims.len(), 1);
        assert!(sys::kill(shims[0], libc::SIGKILL));
    }

    fn assert_died_with_its_shim(&self, id: &str, end: &Completion) {
        assert_eq!((end.exit_code, end.status.as_str()), (-1, "failed"));
        let pid = self.only_pid();
        eventually("the end of the command", || !is_alive(pid));
        let (stdout, stderr) = self.streams(id);
        let (all_stdout, all_stderr) = printed(600);
        assert!(stdout.len() > 10 && all_stdout.starts_with(&stdout), "{stdout}");
        let (own, said) = stderr.split_once("[djangocommand: ").expect("a line that says what happened");
        assert!(all_stderr.starts_with(own), "{stderr}");
        assert_eq!(said, "the process that watched the command was killed, and the command with it]\n");
    }

    /// The runner ends by itself with nothing left to do, and all directories are gone.
    fn assert_over(&self, runner: &Running) {
        assert!(runner.stop(LATER).success());
        assert!(self.state.executions().is_empty(), "{:?}", self.state.executions());
    }
}

/// What `work` prints on its two streams.
fn printed(count: usize) -> (String, String) {
    let stream = |is_stderr: bool| {
        let numbers = (0..count).filter(|number| (number % 3 == 2) == is_stderr);
        numbers.map(|number| format!("line {number}\n")).collect()
    };
    (stream(false), stream(true))
}

fn is_alive(pid: u32) -> bool {
    let mut stat = String::new();
    let read = fs::File::open(Path::new("/proc").join(pid.to_string()).join("stat"))
        .and_then(|mut file| file.read_to_string(&mut stat));
    // Killed but not yet reaped by whoever adopted it is as good as gone.
    read.is_ok() && !stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z'))
}

/// xorshift: enough for instants, and the seed of a failed run can be tried again.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 |= 1;
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}
