//! Chance that can be had again: the same seed draws the same.

/// splitmix64.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Random(seed)
    }

    /// Another one, so that what is drawn from either does not depend on how often the other is asked.
    pub(crate) fn split(&mut self) -> Self {
        Random(self.next())
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub(crate) fn one_in(&mut self, chances: u64) -> bool {
        self.below(chances) == 0
    }

    pub(crate) fn pick<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        let place = self.below(all.len() as u64);
        &all[usize::try_from(place).unwrap()]
    }

    /// Mostly 1, now and then a larger number.
    pub(crate) fn small(&mut self, limit: u64) -> u64 {
        let widest = 1 + self.below(limit);
        1 + self.below(widest)
    }

    /// A UUID of version 4.
    pub(crate) fn uuid(&mut self) -> String {
        let hex = format!("{:016x}{:016x}", self.next(), self.next());
        let (third, fourth) = (&hex[13..16], &hex[17..20]);
        format!("{}-{}-4{third}-a{fourth}-{}", &hex[..8], &hex[8..12], &hex[20..])
    }
}
