//! Everything at once for a while. `scripts/lab steady` does the same for as long as is wanted.

use anyhow::Result;
use pvsched_e2e::promise_with;
use pvsched_lab::steady::{self, Options, CPU_EXITS};

use crate::vm::nothing_pinned;

const MINUTES: u32 = 3;

#[test]
fn a_random_mix_of_everything_leaves_the_host_steady() -> Result<()> {
    let options = Options::random(MINUTES);
    println!(
        "to repeat it: scripts/lab steady --minutes {MINUTES} --seed {}",
        options.seed
    );
    promise_with(&CPU_EXITS, || {
        println!("{}", steady::run(&options)?);
        nothing_pinned()
    })
}
