//! What kvpn costs, measured on the lab beside the direct way to the pod and the
//! raw pipe through the API server: one after the other within each round.

pub mod figures;
mod interrupt;
mod measure;
pub mod ports;
mod process;
mod report;
mod rig;
pub mod stats;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

pub use self::figures::{Figure, Group, Way};
pub use self::report::{About, Report, Result as FigureResult, Verdict};
pub use self::rig::Pace;

use self::rig::Rig;
use crate::lab::binaries;
use crate::lab::layout::{Layout, Profile};
use crate::soak;

/// What to measure, and what to leave behind.
#[derive(Clone, Debug)]
pub struct Plan {
    pub figures: Vec<&'static Figure>,
    pub pace: Pace,
    /// Leave the lab up, with what was measured on it.
    pub keep: bool,
}

/// Builds what is measured: all of it as users get it.
pub fn build() -> Result<()> {
    binaries::build(&Layout::new().with_profile(Profile::Release))
}

/// Measures on the lab, which is afterwards as it was found.
pub fn run(plan: &Plan) -> Result<Report> {
    let mut rig = Rig::build(plan.pace, plan.keep)?;
    let samples = measure::all(&mut rig, &plan.figures);
    end(rig, plan.keep, samples).map(|samples| Report::of(&samples, &plan.pace))
}

/// How long a piece of a soak lasts; memory and open flows are looked at after it.
const PIECE: Duration = Duration::from_secs(5 * 60);

/// How much larger than after the first piece a process may be at the end.
const GROWTH: u64 = 32 << 20;

/// Keeps mixed traffic going for that long, piece by piece over one connection.
pub fn soak(time: Duration, keep: bool) -> Result<()> {
    let mut rig = Rig::build(Pace::FULL, keep)?;
    let soaked = rig.add_sample().and_then(|()| soak_in_pieces(&rig, time));
    end(rig, keep, soaked)
}

fn soak_in_pieces(rig: &Rig, time: Duration) -> Result<()> {
    let (start, laptop) = (Instant::now(), rig.lab().laptop(rig::CONNECTED)?);
    let mut first = None;
    while start.elapsed() < time {
        interrupt::check()?;
        let piece = time.saturating_sub(start.elapsed()).min(PIECE);
        let now = soak::run(rig.lab(), &laptop, piece)?.after;
        let before: soak::Memory = *first.get_or_insert(now);
        for (name, before, now) in [
            ("session", before.session, now.session),
            ("traffic manager", before.manager, now.manager),
        ] {
            ensure!(
                now <= before + GROWTH,
                "the {name} has grown from {before} to {now} bytes in {} s",
                start.elapsed().as_secs()
            );
        }
    }
    Ok(())
}

fn end<T>(rig: Rig, keep: bool, result: Result<T>) -> Result<T> {
    let ended = rig.end(keep).context("leave the lab as it was");
    // Why it failed says more than what came of that.
    let value = result?;
    ended.map(|()| value)
}
