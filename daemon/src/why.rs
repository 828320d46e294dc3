//! `kvpnd why`: finds out how a name or an address is reached from this host, and
//! where it stops. It needs neither a privilege nor a connection.

mod far_side;
mod name;
mod route;
mod sessions;

use std::io::Write;
use std::net::IpAddr;

use kvpn_proto::Failure;
use kvpn_proto::story::{Place, Step, Story};

use sessions::Sessions;

/// How many addresses of a name are looked at.
const MAX_ADDRESSES: usize = 4;

#[derive(Debug, clap::Args)]
pub(crate) struct WhyArgs {
    /// Name or address.
    target: String,
    /// TCP port to connect to.
    #[arg(long)]
    port: Option<u16>,
}

/// Prints the story as JSON.
pub(crate) async fn why(args: &WhyArgs) -> Result<(), Failure> {
    let sessions = Sessions::find().await;
    let story = tell(args, &sessions).await;
    let story = serde_json::to_string(&story).map_err(Failure::internal)?;
    writeln!(std::io::stdout(), "{story}").map_err(Failure::internal)
}

async fn tell(args: &WhyArgs, sessions: &Sessions) -> Story {
    let mut story = Story {
        target: args.target.clone(),
        port: args.port,
        addresses: Vec::new(),
        steps: Vec::new(),
        reached: args.port.map(|_| false),
    };
    story.addresses = match args.target.parse::<IpAddr>() {
        Ok(address) => vec![address],
        Err(_) => name::resolve(&args.target, sessions, &mut story.steps).await,
    };
    let addresses = story.addresses.iter().take(MAX_ADDRESSES);
    let addresses: Vec<IpAddr> = addresses.copied().collect();
    for address in addresses {
        if !route::follow(address, sessions, &mut story.steps).await {
            continue;
        }
        if let Some(port) = args.port {
            let step = far_side::knock(address, port).await;
            story.reached = Some(story.reached == Some(true) || step.ok);
            story.steps.push(step);
        }
    }
    if args.port.is_none() && story.steps.iter().all(|step| step.ok) {
        story.steps.push(Step::on(
            Place::FarSide,
            format!(
                "Whether it accepts connections, `kvpn why {}` tells.",
                with_port(&args.target)
            ),
        ));
    }
    story
}

fn with_port(target: &str) -> String {
    if target.contains(':') {
        format!("[{target}]:PORT")
    } else {
        format!("{target}:PORT")
    }
}
