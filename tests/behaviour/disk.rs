//! The disk: full, or soon to be. No command is held up or killed by that; what is missing is counted and said.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::own_mounts;
use crate::support::project::{Project, fake_project, fake_project_with_settings};
use crate::support::runner::{Runner, Running};
use crate::support::server::{Endpoint, Job, Server};
use crate::support::state_dir::StateDir;

/// For anything that starts interpreters, on a machine that is busy with other tests.
const WITHIN: Duration = Duration::from_secs(60);
/// What `big 1` prints, in bytes.
const MEGABYTE: usize = 1_000_000;

#[test]
fn what_is_beyond_the_limit_is_counted_and_a_line_at_its_end_says_so() {
    let (server, project) =
        (Server::start(), fake_project_with_settings("DJANGOCOMMAND_MAX_OUTPUT_BYTES = 100000"));
    let [whole, long] = ["echo", "big"].map(|command| server.enqueue(Job::new(command).args("1")));
    let runner = Runner::in_project(&project).server(&server).start();
    assert_eq!(server.completed(&whole, WITHIN).status, "success");
    assert_eq!(server.completed(&long, WITHIN).status, "success", "the command goes on");
    let text = server.state(|state| state.execution(&long).stdout());
    let (kept, notice) = text.split_once('[').unwrap();
    let missing = MEGABYTE - kept.trim_end_matches('\n').len();
    assert!((100_000..200_000).contains(&kept.len()), "{}", kept.len());
    let said = |missing| {
        format!(
            "{missing} bytes of output are missing here: it is longer than the 100000 bytes of MAX_OUTPUT_BYTES]\n"
        )
    };
    // The last line that was kept may have ended with the block, or was ended before the notice.
    assert!(notice == said(missing) || notice == said(missing - 1), "{notice} is not about {missing}");
    runner.wait_for_log("bytes of its output are beyond MAX_OUTPUT_BYTES", WITHIN);
}

#[test]
fn a_command_that_fills_the_disk_goes_on_and_is_reported_with_what_was_kept() {
    let Some(disk) = Disk::new("300k") else { return };
    let (server, project) = (Server::start(), fake_project());
    let runner = disk.start(&project, &server);
    let id = server.enqueue(Job::new("big").args("1"));
    assert_eq!(server.completed(&id, WITHIN).status, "success");
    let text = server.state(|state| state.execution(&id).stdout());
    let (notices, kept): (Vec<&str>, Vec<&str>) = text.lines().partition(|line| line.starts_with('['));
    let kept: usize = kept.iter().map(|line| line.len() + 1).sum();
    let count = |notice: &&str| {
        let count =
            notice.strip_suffix(" bytes of output are missing here: the disk did not take them]").unwrap();
        count[1..].parse::<usize>().unwrap()
    };
    let missing: usize = notices.iter().map(count).sum();
    // A line that is cut by a notice has a newline of its own, and the command's last line has none, which counts here.
    assert!(
        kept > 10_000 && (kept + missing - MEGABYTE) <= notices.len() + 1,
        "{kept} and {missing}: {notices:?}"
    );
    runner.wait_for_log(
        &format!("execution {id}: the disk did not take {missing} bytes of its output"),
        WITHIN,
    );
    // There is room again, and all goes on.
    let next = server.enqueue(Job::new("echo").args("next"));
    assert_eq!(server.completed(&next, WITHIN).status, "success");
    server.state(|state| assert!(state.execution(&next).stdout().contains("next")));
}

#[test]
fn while_somebody_else_fills_the_disk_what_runs_ends_and_is_reported_and_nothing_new_is_taken() {
    let Some(disk) = Disk::new("300k") else { return };
    let (server, project) = (Server::start(), fake_project());
    let runner = disk.start(&project, &server);
    // "before", then a second of silence in which the disk becomes full, then "after".
    let id = server.enqueue(Job::new("raw").args("6265666f72650a @2 61667465720a"));
    server.wait_for("its first line", WITHIN, |state| {
        state.execution(&id).stdout().starts_with("before\n").then_some(())
    });
    let filler = disk.fill(&runner);
    let end = server.completed(&id, WITHIN);
    assert_eq!((end.status.as_str(), end.exit_code), ("success", 0));
    server.state(|state| {
        let text = state.execution(&id).stdout();
        let lost = "before\n[6 bytes of output are missing here: the disk did not take them]\n";
        assert!(text == "before\nafter\n" || text == lost, "{text}");
    });
    let filler = filler.into_iter().chain(disk.fill(&runner)).collect::<Vec<_>>();
    let late = server.enqueue(Job::new("echo").args("late"));
    let said = runner.wait_for_log("cannot be taken: No space left on device", WITHIN);
    assert!(said.contains(&late) && said.contains("it stays pending at the service"), "{said}");
    disk.wait_for_status(&runner, |status| {
        status["cannot_take"].as_str().is_some_and(|why| why.starts_with("No space left"))
    });
    server.state(|state| assert!(state.execution(&late).started.is_none()));
    filler.iter().for_each(|file| fs::remove_file(file).unwrap());
    assert_eq!(server.completed(&late, WITHIN).status, "success");
    disk.wait_for_status(&runner, |status| status["cannot_take"].is_null() && status["pid"] == runner.pid());
}

/// A state directory on a small file system of its own, which only the runner and its children see under that name.
struct Disk {
    state: StateDir,
    size: &'static str,
    launcher: &'static [&'static str],
}

impl Disk {
    fn new(size: &'static str) -> Option<Self> {
        own_mounts::launcher().map(|launcher| Disk { state: StateDir::new(), size, launcher })
    }

    fn start(&self, project: &Project, server: &Server) -> Running {
        let path = self.state.path().display();
        let mount = format!("mount -t tmpfs -o mode=700,size={} disk '{path}' && exec \"$@\"", self.size);
        let launcher = self.launcher.iter().copied().chain(["sh", "-c", &mount, "sh"]);
        let runner =
            Runner::in_project(project).server(server).state_dir(&self.state).launched_by(launcher).start();
        server.wait_for("a poll", WITHIN, |state| state.of(Endpoint::Pending).next().map(|_| ()));
        runner
    }

    /// The directory as this process can reach it.
    fn seen(&self, runner: &Running) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{}", runner.pid(), self.state.path().display()))
    }

    /// Leaves no room at all; returns the files that take it.
    fn fill(&self, runner: &Running) -> Vec<PathBuf> {
        let free = (0..1000).map(|number| self.seen(runner).join(format!("filler-{}-{number}", fresh())));
        let mut files = Vec::new();
        for file in free {
            let full = [4096, 1].iter().all(|size| fs::write(&file, vec![b'x'; *size]).is_err());
            files.push(file);
            if full {
                return files;
            }
        }
        panic!("the disk does not become full");
    }

    /// What the runner says of itself. On a full disk it is written in place, so that half of it may be seen.
    fn wait_for_status(&self, runner: &Running, look: impl Fn(&Value) -> bool) {
        let path = self.seen(runner).join("status.json");
        let deadline = Instant::now() + WITHIN;
        loop {
            let bytes = fs::read(&path).unwrap();
            if serde_json::from_slice(&bytes).is_ok_and(|status| look(&status)) {
                return;
            }
            assert!(Instant::now() < deadline, "{}", String::from_utf8_lossy(&bytes));
        }
    }
}

/// A number that no other call gets.
fn fresh() -> usize {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    NEXT.fetch_add(1, Relaxed)
}
