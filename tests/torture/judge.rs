//! What became of an execution, against what its command surely wrote, and who was killed meanwhile.
//!
//! | the command | its output is |
//! | --- | --- |
//! | ended by itself | all that it writes; of several processes, all that each writes, in its order |
//! | was cancelled or timed out | a beginning of that, with all that it had recorded |
//! | ended and left a process that writes on | the same: of what that writes after the command's end, any beginning |
//! | was killed, or its shim | a beginning, with all that the shim had appended, or had synced if the power was lost |
//! | never ran | nothing but the line that says so |

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::support::server::execution::Execution;
use super::work::{Kind, TREE, Work};

const METADATA_ONLY: &str = "(metadata-only mode, no output captured)\n";
const INTERRUPTED: &str = "[djangocommand: interrupted before the command began; it was not run]\n";
const SHIM_DIED: &str =
    "[djangocommand: the process that watched the command was killed, and the command with it]\n";
/// What a command's last character may become if it is killed within it.
const BROKEN: char = '\u{fffd}';

/// What must never be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Breach {
    /// Output is missing, doubled or altered.
    Loss,
    /// A command ran twice.
    Double,
    /// An execution was not completed though nothing kept anybody from it.
    Stuck,
    /// Any other promise was broken: a wrong end, something left over, a breach of the protocol.
    Wrong,
}

/// Who died while an execution was under way.
#[derive(Clone, Copy, Default)]
pub(crate) struct Deaths {
    /// Or its end, because it was told to go.
    pub(crate) of_a_runner: bool,
    /// Its shim's, or its command's, before or after either was what it was to be.
    pub(crate) of_its_shim: bool,
    /// Also after its end: what it had left behind was killed as well.
    pub(crate) of_all: bool,
}

/// What an execution has left outside of the service.
pub(crate) struct Traces<'a> {
    /// Where its command and its shim have written down what they did.
    pub(crate) records: &'a Path,
    pub(crate) runs: usize,
    /// Lines of `audit.jsonl`.
    pub(crate) started: usize,
    pub(crate) delivered: usize,
    pub(crate) deaths: Deaths,
}

/// Everything that is held against one execution, and how many bytes of its output were compared.
pub(crate) struct Verdict {
    pub(crate) breaches: Vec<(Breach, String)>,
    pub(crate) bytes: usize,
}

/// One stream: what arrived, and what is known of it.
struct Stream {
    arrived: String,
    /// By the process that writes it.
    printed: Vec<String>,
    /// Bytes that the command had surely written.
    recorded: usize,
    /// What a shim had surely appended to `output`.
    captured: String,
}

impl Stream {
    /// What arrived, by the process that wrote it. In which order several wrote nobody knows; each line is one write.
    fn by_process(&self) -> Vec<String> {
        if self.printed.len() == 1 {
            return vec![self.arrived.clone()];
        }
        let mut parts = vec![String::new(); self.printed.len()];
        for line in self.arrived.split_inclusive('\n') {
            let process = line.split([' ', '.']).nth(1).and_then(|word| word.parse::<usize>().ok());
            // What is nobody's is found in the wrong place.
            let process = process.filter(|process| *process < parts.len()).unwrap_or(0);
            parts[process].push_str(line);
        }
        parts
    }

    fn is_whole(&self) -> bool {
        self.by_process() == self.printed
    }

    /// What was written up to some instant, neither doubled nor altered nor with a gap.
    fn is_beginning(&self) -> bool {
        let parts = self.by_process();
        let mut pairs = self.printed.iter().zip(&parts);
        pairs.all(|(printed, arrived)| printed.starts_with(arrived.trim_end_matches(BROKEN)))
    }

    fn has_all_that_was_captured(&self) -> bool {
        self.arrived.starts_with(&self.captured)
    }

    fn has_all_that_was_written(&self) -> bool {
        self.arrived.len() >= self.recorded
    }

    fn sizes(&self) -> String {
        let parts = self.by_process();
        let same = |(a, b): (&String, &String)| a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count();
        let same: usize = parts.iter().zip(&self.printed).map(same).sum();
        format!(
            "{} bytes arrived, equal for {same} of {}, {} recorded, {} captured",
            self.arrived.len(),
            self.printed.iter().map(String::len).sum::<usize>(),
            self.recorded,
            self.captured.len()
        )
    }
}

/// How an execution ended, by the runner's own line at the end of its output.
#[derive(Debug, PartialEq)]
enum Ending {
    ByItself,
    Interrupted,
    ShimDied,
}

pub(crate) fn judge(work: &Work, execution: &Execution, traces: &Traces<'_>) -> Verdict {
    let mut stderr = execution.stderr();
    let mut ending = Ending::ByItself;
    for (line, meaning) in [(INTERRUPTED, Ending::Interrupted), (SHIM_DIED, Ending::ShimDied)] {
        if let Some(rest) = stderr.strip_suffix(line) {
            (stderr, ending) = (rest.to_owned(), meaning);
            break;
        }
    }
    let mut streams =
        [stream(work, execution.stdout(), traces.records, false), stream(work, stderr, traces.records, true)];
    // A line that the shim's death left open is ended before the runner's own.
    let open = &mut streams[1];
    let is_captured = work.kind != Kind::MetadataOnly;
    if is_captured && ending == Ending::ShimDied && open.arrived.ends_with('\n') && !open.is_beginning() {
        open.arrived.pop();
    }
    let end = execution.completed.as_ref().map(|end| (end.status.as_str(), end.exit_code));
    let mut judgement =
        Judgement { work, streams, runs: traces.runs, deaths: traces.deaths, end, breaches: Vec::new() };
    judgement.ending(&ending);
    judgement.audit(traces);
    judgement.left_behind(traces);
    let bytes = judgement.streams.iter().map(|stream| stream.arrived.len()).sum();
    Verdict { breaches: judgement.breaches, bytes }
}

fn stream(work: &Work, arrived: String, records: &Path, is_stderr: bool) -> Stream {
    let name = if is_stderr { "stderr" } else { "stdout" };
    let record = |process: usize| {
        let record = fs::read_to_string(records.join(format!("{}.{name}.{process}", work.id)));
        record.ok().and_then(|record| record.parse::<usize>().ok()).unwrap_or(0)
    };
    let captured = fs::read_to_string(records.join(format!("{}.captured", work.id))).unwrap_or_default();
    let segments = captured.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let of_stream = segments.filter(|segment| segment["stream"] == name);
    let captured = of_stream.map(|segment| segment["content"].as_str().unwrap().to_owned()).collect();
    let printed = work.printed(is_stderr);
    Stream { arrived, printed, recorded: (0..TREE).map(record).sum(), captured }
}

struct Judgement<'a> {
    work: &'a Work,
    streams: [Stream; 2],
    runs: usize,
    deaths: Deaths,
    end: Option<(&'a str, i64)>,
    breaches: Vec<(Breach, String)>,
}

impl Judgement<'_> {
    fn demand(&mut self, holds: bool, breach: Breach, what: &str) {
        if !holds {
            let Judgement { work, end, runs, .. } = self;
            let [stdout, stderr] = self.streams.each_ref().map(Stream::sizes);
            let about = format!("{:?}, ended as {end:?}, {runs} run(s)", work.kind);
            self.breaches
                .push((breach, format!("{} ({about}): {what}; stdout: {stdout}; stderr: {stderr}", work.id)));
        }
    }

    fn all(&self, is_so: impl Fn(&Stream) -> bool) -> bool {
        self.streams.iter().all(is_so)
    }

    fn ending(&mut self, ending: &Ending) {
        self.demand(self.runs <= 1, Breach::Double, "it ran more than once");
        if self.end.is_none() {
            return self.demand(false, Breach::Stuck, "it was never completed");
        }
        match (ending, self.work.kind) {
            (Ending::Interrupted, kind) => {
                let Deaths { of_a_runner, of_its_shim, .. } = self.deaths;
                self.demand(
                    of_a_runner || of_its_shim,
                    Breach::Wrong,
                    "interrupted, though nobody was killed",
                );
                self.demand(self.runs == 0, Breach::Wrong, "it is said not to have run");
                self.demand(self.end == Some(("failed", -1)), Breach::Wrong, "the wrong end");
                let says_nothing = self.all(|stream| match kind {
                    Kind::MetadataOnly => ["", METADATA_ONLY].contains(&&*stream.arrived),
                    Kind::Rejected => true,
                    _ => stream.arrived.is_empty(),
                });
                self.demand(says_nothing, Breach::Loss, "output of a command that was not run");
            }
            (Ending::ShimDied, kind) => {
                self.demand(self.deaths.of_its_shim, Breach::Wrong, "its shim was not killed");
                self.demand(self.end == Some(("failed", -1)), Breach::Wrong, "the wrong end");
                match kind {
                    Kind::MetadataOnly => self.says_that_nothing_was_captured(),
                    _ => self.began_well(),
                }
            }
            (Ending::ByItself, Kind::Rejected) => {
                self.demand(self.runs == 0, Breach::Wrong, "it was refused and ran");
                self.demand(self.end == Some(("failed", -1)), Breach::Wrong, "the wrong end");
                let [stdout, stderr] = &self.streams;
                let is_told =
                    stdout.arrived.is_empty() && stderr.arrived.starts_with("Refused to run 'flush'");
                self.demand(is_told, Breach::Loss, "it is not said why it was refused");
            }
            (Ending::ByItself, kind) => {
                // The command, or what was to be it, may be killed with its shim and an instant before it.
                let was_killed = self.deaths.of_its_shim && self.end == Some(("failed", -9));
                // Until it has begun it does not ignore a signal.
                let was_faster = self.work.kind == Kind::CancelledStubborn && self.runs == 0;
                let is_right = self.end == Some(self.work.end())
                    || was_killed
                    || (was_faster && self.end == Some(("cancelled", -15)));
                self.demand(is_right, Breach::Wrong, "the wrong end");
                let ran = self.runs == 1 || was_killed || self.work.is_ended_from_outside();
                self.demand(ran, Breach::Wrong, "it did not run");
                match kind {
                    Kind::MetadataOnly => self.says_that_nothing_was_captured(),
                    _ if was_killed => self.began_well(),
                    // Of what the process that it leaves behind writes, nobody knows how much is still taken.
                    _ if self.work.is_ended_from_outside() || kind == Kind::Lingers => {
                        self.began_well();
                        let has_all = self.all(Stream::has_all_that_was_written);
                        self.demand(has_all, Breach::Loss, "less than the command wrote");
                    }
                    _ => {
                        let is_whole = self.all(Stream::is_whole);
                        self.demand(is_whole, Breach::Loss, "not what the command wrote");
                    }
                }
            }
        }
    }

    /// It is recorded before it happens; after a crash, what was done before may be recorded once more.
    fn audit(&mut self, traces: &Traces<'_>) {
        let is_recorded = traces.started <= 1 && traces.started >= traces.runs && traces.delivered >= 1;
        let is_told = self.end.is_none() || is_recorded;
        let count = format!("audit.jsonl has {} begin(s), {} end(s)", traces.started, traces.delivered);
        self.demand(is_told, Breach::Wrong, &count);
    }

    /// What a command leaves behind is let live to its end, and not waited for.
    fn left_behind(&mut self, traces: &Traces<'_>) {
        let time = |what: &str| {
            let meta = fs::metadata(traces.records.join(format!("{}.{what}", self.work.id)));
            meta.and_then(|meta| meta.modified()).ok()
        };
        let (left, ended, exit) = (time("left"), time("left-ended"), time("exit"));
        // A pipe without a reader ends whoever writes into it.
        let Deaths { of_all, of_its_shim, .. } = self.deaths;
        let was_killed = of_all || (of_its_shim && self.work.kind == Kind::Lingers);
        let lived = left.is_none() || ended.is_some() || was_killed;
        self.demand(lived, Breach::Wrong, "what it left behind did not live to its end");
        let was_waited_for = exit.zip(ended).is_some_and(|(exit, ended)| exit > ended);
        self.demand(!was_waited_for, Breach::Wrong, "the end of what it left behind was waited for");
    }

    fn began_well(&mut self) {
        let is_beginning = self.all(Stream::is_beginning);
        self.demand(is_beginning, Breach::Loss, "not the beginning of what the command writes");
        let has_all = self.all(Stream::has_all_that_was_captured);
        self.demand(has_all, Breach::Loss, "less than the shim had captured");
    }

    fn says_that_nothing_was_captured(&mut self) {
        let is_so = self.all(|stream| stream.arrived == METADATA_ONLY);
        self.demand(is_so, Breach::Loss, "not the text of the metadata-only mode");
    }
}
