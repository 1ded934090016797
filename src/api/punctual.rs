//! A time limit for all that answers one write, where ureq has one for each read: a proxy that answers `CONNECT` with a
//! byte now and then would hold the loop up for hours.

use std::time::Instant;

use ureq::Error;
use ureq::unversioned::transport::{Buffers, ConnectionDetails, Connector, NextTimeout, Transport};

/// Makes the connections of those before it in the chain punctual.
#[derive(Debug)]
pub(super) struct Punctual;

impl<In: Transport> Connector<In> for Punctual {
    type Out = PunctualTransport<In>;

    fn connect(&self, _: &ConnectionDetails, chained: Option<In>) -> Result<Option<Self::Out>, Error> {
        Ok(chained.map(|inner| PunctualTransport { inner, until: None }))
    }
}

#[derive(Debug)]
pub(super) struct PunctualTransport<T> {
    inner: T,
    /// When the first read after the last write had to be over. For the reads after it ureq has the same instant in mind,
    /// or forgot to count the time since.
    until: Option<Instant>,
}

impl<T: Transport> Transport for PunctualTransport<T> {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.inner.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        self.until = None;
        self.inner.transmit_output(amount, timeout)
    }

    fn await_input(&mut self, mut timeout: NextTimeout) -> Result<bool, Error> {
        let now = Instant::now();
        if self.until.is_none() && !timeout.after.is_not_happening() {
            self.until = now.checked_add(*timeout.after);
        }
        if let Some(until) = self.until {
            let left = until.saturating_duration_since(now);
            if left.is_zero() {
                return Err(Error::Timeout(timeout.reason));
            }
            timeout.after = left.min(*timeout.after).into();
        }
        self.inner.await_input(timeout)
    }

    fn is_open(&mut self) -> bool {
        self.inner.is_open()
    }

    fn is_tls(&self) -> bool {
        self.inner.is_tls()
    }
}
