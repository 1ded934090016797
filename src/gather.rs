//! Sets and maps of few things, by little code.

/// Collects into a set or a map by one insertion after the other. `collect` would sort the things first, and brings
/// some 4 kB of sorting for each kind of thing into the program.
pub fn gather<C: Default + Extend<T>, T>(things: impl IntoIterator<Item = T>) -> C {
    let mut collection = C::default();
    collection.extend(things);
    collection
}
