//! Who may have a lease, and that there is one at a time.

use std::io::{Read, Write};
use std::time::Duration;

use kvpn_proto::version::VERSION;

use crate::client::Client;
use crate::host::{Host, wait_for};

/// Users and groups that no host names.
const USER: u32 = 54_321;
const GROUP: u32 = 54_322;

#[test]
fn second_lease_is_refused_and_names_the_holder() {
    let host = Host::new();
    let _daemon = host.daemon();
    let mut first = host.client();
    let granted = first
        .acquire_with(&["10.96.0.0/16"], &[], "kind-dev")
        .unwrap();

    let refused = host.client().acquire(&["10.97.0.0/16"]).err().unwrap();
    assert_eq!(refused.reason, "AlreadyConnected");
    assert_eq!(
        refused.message,
        "user root (uid 0) is connected to kind-dev on this host"
    );
    assert!(refused.next_step.contains("`kvpn quit`"), "{refused:?}");
    let again = first.acquire(&["10.97.0.0/16"]).err().unwrap();
    assert_eq!(again.reason, "AlreadyConnected");

    drop((first, granted));
    host.client().acquire(&["10.97.0.0/16"]).unwrap();
}

#[test]
fn user_who_is_not_allowed_is_told_so() {
    let host = Host::new();
    let before = host.snapshot();
    let _daemon = host.daemon_with(&["--allow-user", "54320", "--allow-group", "54322"]);
    let mut client = Client::connect_as(&host.socket(), USER, &[USER]);
    let refused = client.acquire(&["10.96.0.0/16"]).err().unwrap();
    assert_eq!(refused.reason, "DaemonNotRunning");
    assert_eq!(refused.message, "user with uid 54321 may not use kvpnd");
    assert_eq!(host.snapshot(), before);
}

#[test]
fn allowed_user_and_member_of_an_allowed_group_get_leases() {
    let host = Host::new();
    let _daemon = host.daemon_with(&["--allow-user", "54321", "--allow-group", "54322"]);
    let mut user = Client::connect_as(&host.socket(), USER, &[]);
    let granted = user.acquire(&["10.96.0.0/16"]).unwrap();
    drop((user, granted));
    let mut member = Client::connect_as(&host.socket(), USER + 5, &[7, GROUP]);
    member.acquire(&["10.96.0.0/16"]).unwrap();
}

#[test]
fn strangers_cannot_hold_many_connections() {
    let host = Host::new();
    let _daemon = host.daemon();
    let mut strangers: Vec<Client> = (0..20)
        .map(|_| Client::connect_as(&host.socket(), USER, &[]))
        .collect();
    let last = &mut strangers.last_mut().unwrap().stream;
    // Shorter than any connection may be silent.
    last.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    assert_eq!(last.read(&mut [0; 16]).unwrap(), 0);
    host.client().acquire(&["10.96.0.0/16"]).unwrap();
}

#[test]
fn description_names_the_holder_to_those_who_may_connect() {
    let host = Host::new();
    let _daemon = host.daemon();
    assert_eq!(host.client().describe().holders, []);
    let mut client = host.client();
    let _granted = client
        .acquire_with(&["10.96.0.1/16"], &[], "kind-dev")
        .unwrap();

    let described = host.client().describe();
    assert_eq!(described.version, VERSION);
    let holder = described.holders.into_iter().next().unwrap();
    assert_eq!(holder.uid, 0);
    assert_eq!(holder.pid, std::process::id());
    assert_eq!(holder.description, "kind-dev");
    assert_eq!(holder.device, "kvpn0");
    assert_eq!(holder.subnets, ["10.96.0.0/16"]);

    let described = Client::connect_as(&host.socket(), USER, &[]).describe();
    assert_eq!(described.version, VERSION);
    assert_eq!(described.holders, []);
}

#[test]
fn nonsense_ends_the_conversation_and_nothing_else() {
    let host = Host::new();
    let _daemon = host.daemon();
    let mut nonsense = host.client();
    nonsense.stream.write_all(&[0xff; 64]).unwrap();
    wait_for("the end of the conversation", || {
        // What was not read by the daemon makes this a reset.
        !matches!(nonsense.stream.read(&mut [0; 16]), Ok(read) if read > 0)
    });
    host.client().acquire(&["10.96.0.0/16"]).unwrap();
}
