//! Python's client of the Hub against our binary, through the server of these tests. `scripts/hub` runs this.
fn main() {}
