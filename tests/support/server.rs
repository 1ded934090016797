//! The protocol server: the service's seven endpoints over real sockets, strict about every rule of the protocol.
//!
//! One thread accepts, one thread serves each connection, and all they know is behind one lock. A breach of the
//! protocol fails the test when the server is dropped, whatever else the test looks at. What it decides by itself,
//! since the protocol leaves it open: a second `start` and a second `complete` are answered with 409.

mod bodies;
pub(crate) mod execution;
mod fault;
pub(crate) mod http;
mod ids;
mod service;
mod state;

use std::io::ErrorKind;
use std::iter;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

pub(crate) use self::execution::Completion;
pub(crate) use self::fault::{Endpoint, Fault};
pub(crate) use self::ids::fresh_uuid_v4;
pub(crate) use self::state::{Event, EventKind, State};

use self::fault::{ENDLESS, Order};
use self::http::Connection;
use self::ids::is_uuid;
use self::service::{Offer, Service};
use crate::support::sys;

/// The one key that the service lets in.
pub(crate) const KEY: &str = "dc_test_0123456789abcdef0123456789abcdef";

/// The pause between two bytes of `Fault::Drip`.
const DRIP: Duration = Duration::from_millis(20);
/// The pause between two bytes of `Fault::Trickle`.
const TRICKLE: Duration = Duration::from_secs(1);
/// How many bytes `Fault::Truncated` promises too much.
const MISSING_BYTES: usize = 100;

/// A command to be run, for `Server::enqueue`.
#[must_use]
pub(crate) struct Job {
    command: String,
    args: String,
    timeout: Value,
    metadata_only: bool,
}

impl Job {
    pub(crate) fn new(command: &str) -> Self {
        Job { command: command.to_owned(), args: String::new(), timeout: json!(300), metadata_only: false }
    }

    /// The whole argument string, as a user types it.
    pub(crate) fn args(mut self, args: &str) -> Self {
        self.args = args.to_owned();
        self
    }

    pub(crate) fn timeout(mut self, seconds: f64) -> Self {
        self.timeout = json!(seconds);
        self
    }

    pub(crate) fn no_timeout(mut self) -> Self {
        self.timeout = Value::Null;
        self
    }

    pub(crate) fn metadata_only(mut self) -> Self {
        self.metadata_only = true;
        self
    }
}

struct Shared {
    service: Mutex<Service>,
    changed: Condvar,
}

impl Shared {
    /// A test that panics while it looks must not turn every other thread's look into a second panic.
    fn lock(&self) -> MutexGuard<'_, Service> {
        self.service.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the time is over, or the server stops, or `is_over` holds.
    fn pause(&self, within: Duration, is_over: impl Fn(&Service) -> bool) {
        let goes_on = |service: &mut Service| !service.is_stopping && !is_over(service);
        drop(self.changed.wait_timeout_while(self.lock(), within, goes_on));
    }
}

/// A running service on a port of its own.
pub(crate) struct Server {
    shared: Arc<Shared>,
    address: SocketAddr,
    acceptor: Option<JoinHandle<()>>,
}

impl Server {
    pub(crate) fn start() -> Self {
        Server::launch(true)
    }

    /// A service that forgets the text of outputs and keeps its length and hash: for more than fits in memory twice.
    pub(crate) fn counting() -> Self {
        Server::launch(false)
    }

    fn launch(keeps_text: bool) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let shared =
            Arc::new(Shared { service: Mutex::new(Service::new(keeps_text)), changed: Condvar::new() });
        let of_thread = Arc::clone(&shared);
        let acceptor = thread::spawn(move || accept(&listener, &of_thread));
        Server { shared, address, acceptor: Some(acceptor) }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Offers a command; the id of its execution.
    pub(crate) fn enqueue(&self, job: Job) -> String {
        let id = fresh_uuid_v4();
        self.enqueue_raw(json!({
            "id": id,
            "command": job.command,
            "args": job.args,
            "timeout": job.timeout,
            "use_metadata_only_mode": job.metadata_only,
        }));
        id
    }

    /// Offers any JSON value as if it were an execution, until it is withdrawn or its `id`, if it has one, is started.
    pub(crate) fn enqueue_raw(&self, value: Value) {
        let id = value["id"].as_str().map(str::to_owned);
        self.change(|service| {
            if let Some(id) = id.as_ref().filter(|id| is_uuid(id)) {
                service.state.executions.entry(id.clone()).or_default();
            }
            service.offers.push(Offer { id, value });
        });
    }

    pub(crate) fn withdraw_raw(&self, value: &Value) {
        self.change(|service| service.offers.retain(|offer| offer.value != *value));
    }

    pub(crate) fn cancel(&self, id: &str) {
        self.ask_to_cancel(id, false);
    }

    pub(crate) fn force_cancel(&self, id: &str) {
        self.ask_to_cancel(id, true);
    }

    fn ask_to_cancel(&self, id: &str, force_kill: bool) {
        self.change(|service| {
            let execution = service.state.executions.get_mut(id).expect("cancelled what was never enqueued");
            execution.cancel_requested = true;
            execution.force_kill = force_kill;
        });
    }

    pub(crate) fn suspend(&self, reason: &str) {
        self.change(|service| service.suspension = Some(reason.to_owned()));
    }

    pub(crate) fn resume(&self) {
        self.change(|service| service.suspension = None);
    }

    pub(crate) fn revoke_key(&self) {
        self.change(|service| service.key_is_revoked = true);
    }

    pub(crate) fn restore_key(&self) {
        self.change(|service| service.key_is_revoked = false);
    }

    /// The next heartbeat is told that the commands are not in sync.
    pub(crate) fn forget_commands(&self) {
        self.change(|service| service.known_hash = None);
    }

    /// From now on syncs are answered with this hash, whatever they hold.
    pub(crate) fn answer_hash(&self, hash: &str) {
        self.change(|service| service.false_hash = Some(hash.to_owned()));
    }

    /// One coming request of this endpoint meets the fault; several calls are served in their order.
    pub(crate) fn next(&self, endpoint: Endpoint, fault: Fault) {
        self.change(|service| service.faults.once(endpoint, fault));
    }

    /// Every request of this endpoint meets the fault, until `heal`.
    pub(crate) fn always(&self, endpoint: Endpoint, fault: Fault) {
        self.change(|service| service.faults.lasting(endpoint, fault));
    }

    pub(crate) fn heal(&self, endpoint: Endpoint) {
        self.change(|service| service.faults.heal(endpoint));
    }

    /// Lets go of the requests that `Fault::Hang` holds: their connections are closed.
    pub(crate) fn release(&self) {
        self.change(|service| service.releases += 1);
    }

    /// Breaks every connection and resets every new one, as a machine does whose service is not running.
    pub(crate) fn down(&self) {
        self.change(|service| {
            service.is_down = true;
            service.connections.values().for_each(hang_up);
        });
    }

    pub(crate) fn up(&self) {
        self.change(|service| service.is_down = false);
    }

    /// Everything that happens from now on, in its order.
    pub(crate) fn events(&self) -> Receiver<Event> {
        let (sender, receiver) = mpsc::channel();
        self.change(|service| service.listeners.push(sender));
        receiver
    }

    /// A look at what is known at this instant. Do not call the server from within.
    pub(crate) fn state<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.shared.lock().state)
    }

    /// Waits until `look` finds something. Do not call the server from within it.
    pub(crate) fn wait_for<T>(&self, what: &str, within: Duration, look: impl Fn(&State) -> Option<T>) -> T {
        let deadline = Instant::now() + within;
        let mut service = self.shared.lock();
        loop {
            if let Some(found) = look(&service.state) {
                return found;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let (log, violations) = (service.state.log(), service.violations.join("\n  "));
                drop(service);
                panic!("waited {within:?} for {what}; the service saw\n{log}  violations: [{violations}]");
            }
            let woken = self.shared.changed.wait_timeout(service, left);
            service = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits for the end of an execution.
    pub(crate) fn completed(&self, id: &str, within: Duration) -> Completion {
        self.wait_for(&format!("the completion of {id}"), within, |state| {
            state.executions.get(id)?.completed.clone()
        })
    }

    /// The breaches of the protocol so far. Whoever takes them answers for them: dropping the server is then no panic.
    pub(crate) fn take_violations(&self) -> Vec<String> {
        std::mem::take(&mut self.shared.lock().violations)
    }

    /// Sets the service's clock so far ahead of the machine's, while `others` does so with the runner's.
    pub(crate) fn set_clock_ahead(&self, seconds: f64, others: impl FnOnce()) {
        self.change(|service| {
            service.clock_before = Some((Instant::now(), service.clock_ahead_seconds));
            service.clock_ahead_seconds = seconds;
            others();
        });
    }

    fn change(&self, act: impl FnOnce(&mut Service)) {
        act(&mut self.shared.lock());
        self.shared.changed.notify_all();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.change(|service| {
            service.is_stopping = true;
            service.connections.values().for_each(hang_up);
        });
        // The acceptor notices when it gets one more connection; if that fails it is gone already.
        drop(TcpStream::connect(self.address));
        let ended = self.acceptor.take().map(JoinHandle::join);
        if thread::panicking() {
            return;
        }
        assert!(matches!(ended, Some(Ok(()))), "a thread of the server panicked: see above");
        let service = self.shared.lock();
        let (violations, log) = (service.violations.clone(), service.state.log());
        drop(service);
        assert!(
            violations.is_empty(),
            "the protocol was violated:\n  {}\nthe service saw\n{log}",
            violations.join("\n  ")
        );
    }
}

fn hang_up(stream: &TcpStream) {
    // The peer may have closed it a moment ago, which is as good.
    drop(stream.shutdown(Shutdown::Both));
}

/// Hands each connection to a thread of its own, and waits for all of them when the server stops.
fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    let mut threads = Vec::new();
    for number in 1.. {
        let (stream, _) = listener.accept().expect("cannot accept a connection");
        let mut service = shared.lock();
        if service.is_stopping {
            break;
        }
        if service.is_down {
            service.state.refused.push(Instant::now());
            sys::reset_on_close(&stream);
            shared.changed.notify_all();
            continue;
        }
        service.connections.insert(number, stream.try_clone().unwrap());
        let of_thread = Arc::clone(shared);
        threads.push(thread::spawn(move || serve(stream, number, &of_thread)));
    }
    for thread in threads {
        thread.join().expect("a connection's thread panicked");
    }
}

/// Serves one connection to its end. Errors of the socket are the client's business: it sees the same.
fn serve(stream: TcpStream, number: u64, shared: &Shared) {
    let mut connection = Connection::new(stream).unwrap();
    loop {
        match connection.read() {
            Ok(Some(message)) => {
                // Taken together, so that a release after the request was seen is a release of this request.
                let mut service = shared.lock();
                let (order, releases) = (service.take(&message, number), service.releases);
                service.in_flight += 1;
                service.state.in_flight_max = service.state.in_flight_max.max(service.in_flight);
                drop(service);
                shared.changed.notify_all();
                let lives_on = carry_out(order, releases, &mut connection, number, shared);
                shared.lock().in_flight -= 1;
                if !lives_on {
                    break;
                }
            }
            Err(error) if error.kind() == ErrorKind::InvalidData => {
                shared.lock().violations.push(format!("connection #{number}: {error}"));
                break;
            }
            Ok(None) | Err(_) => break,
        }
    }
    shared.lock().connections.remove(&number);
    shared.changed.notify_all();
}

/// Does what the service decided; true if the connection lives on.
fn carry_out(order: Order, releases: u64, connection: &mut Connection, number: u64, shared: &Shared) -> bool {
    match order {
        Order::Answer(answer) => connection.write(&answer.bytes(0)).is_ok(),
        Order::AnswerLate(answer, delay) => {
            shared.pause(delay, |_| false);
            connection.write(&answer.bytes(0)).is_ok()
        }
        Order::AnswerThenClose(answer) => {
            connection.write(&answer.bytes(0)).ok();
            false
        }
        Order::AnswerInPart(answer) => {
            connection.write(&answer.bytes(MISSING_BYTES)).ok();
            false
        }
        Order::Drip(answer) => answer.bytes(0).iter().all(|byte| {
            shared.pause(DRIP, |_| false);
            connection.write(&[*byte]).is_ok()
        }),
        Order::Trickle { answer, at_once } => {
            let bytes = answer.bytes(ENDLESS);
            let slowly = bytes[at_once..].iter().copied().chain(iter::repeat_n(b' ', ENDLESS));
            connection.write(&bytes[..at_once]).is_ok()
                && slowly.into_iter().all(|byte| {
                    shared.pause(TRICKLE, |_| false);
                    connection.write(&[byte]).is_ok()
                })
        }
        Order::PartThenReset(answer) => {
            connection.write(&answer.bytes(MISSING_BYTES)).ok();
            shared.lock().connections.remove(&number);
            sys::reset_on_close(&connection.stream);
            false
        }
        Order::Bytes(bytes) => {
            connection.write(&bytes).ok();
            false
        }
        Order::Flood(first, rest) => {
            let mut is_taken = connection.write(&first).is_ok();
            while is_taken && !shared.lock().is_stopping {
                is_taken = connection.write(&rest).is_ok();
            }
            false
        }
        Order::Close => false,
        Order::Reset => {
            // The copy that `down` would use must go first: only the last close sends the reset.
            shared.lock().connections.remove(&number);
            sys::reset_on_close(&connection.stream);
            false
        }
        Order::Silence => {
            shared.pause(Duration::MAX, |service| service.releases > releases);
            false
        }
    }
}
