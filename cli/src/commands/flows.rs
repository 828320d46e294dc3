//! `kvpn flows`: shows what goes through the connection.

use std::io::{IsTerminal, stdout};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use kvpn_proto::v1::FlowsRequest;
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::args::Flags;
use crate::ended::Ended;
use crate::interrupts::Interrupts;
use crate::output::{self, Flows, Format, Output};
use crate::rates::Rates;
use crate::report;
use crate::screen::Screen;
use crate::session::Session;

/// How long a single look measures rates.
const GLANCE: Duration = Duration::from_millis(500);

/// How often a watch looks.
const INTERVAL: Duration = Duration::from_secs(1);

/// Show the flows that go through the connection
///
/// NAME is what was asked for, or the address. TARGET is the pod or Service
/// that has the address; for an intercepted connection the pod that was
/// connected to. RTT is how long the far side took to answer the dial: once
/// through the tunnel and back, and a handshake with the target.
#[derive(Args, Debug)]
pub(crate) struct FlowsArgs {
    /// Look again every second, until interrupted
    ///
    /// On a terminal the flows that move most come first. With `-o json` every
    /// look is one line.
    #[arg(short, long)]
    watch: bool,
    /// Also show flows that have ended within the last minute
    #[arg(short, long)]
    all: bool,
}

pub(crate) async fn run(flags: &Flags, args: &FlowsArgs) -> Result<ExitCode, Ended> {
    let session = Session::require(flags).await?;
    let mut looks = Looks {
        session,
        all: args.all,
        rates: Rates::default(),
    };
    if args.watch {
        return watch(&mut looks, flags.output).await;
    }
    looks.look().await?;
    sleep(GLANCE).await;
    let flows = looks.look().await?;
    if flows.is_empty() && flags.output == Format::Text {
        report::note("No flows");
    }
    output::print(&flows, flags.output)?;
    Ok(ExitCode::SUCCESS)
}

async fn watch(looks: &mut Looks, format: Format) -> Result<ExitCode, Ended> {
    let mut interrupts = Interrupts::listen()?;
    let is_live = format == Format::Text && stdout().is_terminal();
    // Puts the terminal back however this ends.
    let mut screen = is_live.then(Screen::open);
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let flows = tokio::select! {
            flows = async { ticks.tick().await; looks.look().await } => flows?,
            signal = interrupts.next() => return Err(Ended::Interrupted(signal)),
        };
        match &mut screen {
            Some(screen) => screen.show(&flows.by_rate().text()),
            None => {
                if !output::print_next(&flows, format)? {
                    return Ok(ExitCode::SUCCESS);
                }
            }
        }
    }
}

/// Looks at the flows, one after another.
struct Looks {
    session: Session,
    all: bool,
    rates: Rates,
}

impl Looks {
    async fn look(&mut self) -> Result<Flows, Ended> {
        let request = FlowsRequest { ended: self.all };
        let response = self.session.flows(request).await?;
        let rates = self.rates.update(&response.flows, Instant::now());
        Ok(Flows::new(response.flows, &rates))
    }
}
