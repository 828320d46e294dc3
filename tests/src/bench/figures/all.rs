//! All that there are.

use super::{Figure, Floor, Group, Way};

const GBITS: &str = "Gbit/s";
const MICROSECONDS: &str = "µs";

const fn throughput(key: &'static str, title: &'static str, floor: &'static [Floor]) -> Figure {
    Figure {
        key,
        group: Group::Data,
        unit: GBITS,
        title,
        more_is_better: true,
        base: Some(Way::Pipe),
        floors: floor,
    }
}

const fn latency(key: &'static str, title: &'static str, floors: &'static [Floor]) -> Figure {
    Figure {
        key,
        group: Group::Latency,
        unit: MICROSECONDS,
        title,
        more_is_better: false,
        base: Some(Way::Pipe),
        floors,
    }
}

const fn name(key: &'static str, title: &'static str, floors: &'static [Floor]) -> Figure {
    Figure {
        key,
        group: Group::Dns,
        unit: MICROSECONDS,
        title,
        more_is_better: false,
        base: Some(Way::Direct),
        floors,
    }
}

const fn alone(
    group: Group,
    key: &'static str,
    unit: &'static str,
    title: &'static str,
    floors: &'static [Floor],
) -> Figure {
    Figure {
        key,
        group,
        unit,
        title,
        more_is_better: false,
        base: None,
        floors,
    }
}

const fn filtered(
    key: &'static str,
    unit: &'static str,
    title: &'static str,
    floors: &'static [Floor],
) -> Figure {
    Figure {
        base: Some(Way::Direct),
        ..alone(Group::Filters, key, unit, title, floors)
    }
}

const fn over_distance(key: &'static str, title: &'static str, floors: &'static [Floor]) -> Figure {
    Figure {
        key,
        group: Group::Rtt,
        unit: GBITS,
        title,
        more_is_better: true,
        base: Some(Way::Direct),
        floors,
    }
}

const fn files(
    key: &'static str,
    unit: &'static str,
    title: &'static str,
    floors: &'static [Floor],
) -> Figure {
    Figure {
        more_is_better: true,
        ..alone(Group::Files, key, unit, title, floors)
    }
}

const ONE: &[Floor] = &[Floor::Ratio(0.8)];
const EIGHT: &[Floor] = &[Floor::Ratio(0.65)];
const P50_BESIDE: &[Floor] = &[Floor::Value(1_000.0)];
const P99_BESIDE: &[Floor] = &[Floor::Value(5_000.0)];
/// As fast as without them: 1.2 allows for the noise of two medians.
const AS_FAST: &[Floor] = &[Floor::Value(1.2)];
const MIB: f64 = 1_048_576.0;
const IDLE_BYTES: &[Floor] = &[Floor::Value(16_384.0)];

/// All of them, as they are shown.
pub const ALL: &[Figure] = &[
    throughput("tcp_up_1", "1 flow up", ONE),
    throughput("tcp_down_1", "1 flow down", ONE),
    throughput("tcp_up_8", "8 flows up", EIGHT),
    throughput("tcp_down_8", "8 flows down", EIGHT),
    throughput("tcp_up_1_v6", "1 flow up, IPv6", ONE),
    throughput("tcp_down_1_v6", "1 flow down, IPv6", ONE),
    throughput("tcp_up_8_v6", "8 flows up, IPv6", EIGHT),
    throughput("tcp_down_8_v6", "8 flows down, IPv6", EIGHT),
    latency("pingpong_p50_us", "ping-pong, median", &[Floor::Ratio(2.5)]),
    latency("pingpong_p99_us", "ping-pong, p99", &[Floor::Ratio(2.5)]),
    latency(
        "pingpong_p50_beside_down_us",
        "ping-pong beside a download, median",
        P50_BESIDE,
    ),
    latency(
        "pingpong_p99_beside_down_us",
        "ping-pong beside a download, p99",
        P99_BESIDE,
    ),
    latency(
        "pingpong_p50_beside_up_us",
        "ping-pong beside an upload, median",
        P50_BESIDE,
    ),
    latency(
        "pingpong_p99_beside_up_us",
        "ping-pong beside an upload, p99",
        P99_BESIDE,
    ),
    latency(
        "pingpong_p99_under_bulk_us",
        "ping-pong beside either, p99",
        P99_BESIDE,
    ),
    Figure {
        key: "connects_per_s",
        group: Group::Connect,
        unit: "/s",
        title: "connections, 16 at a time",
        more_is_better: true,
        base: Some(Way::Direct),
        floors: &[Floor::Value(2_500.0), Floor::Ratio(0.3)],
    },
    alone(
        Group::Connect,
        "open_us",
        MICROSECONDS,
        "opening one connection",
        &[],
    ),
    alone(
        Group::Connect,
        "open_beside_stalled_ratio",
        "×",
        "the same beside 16 readers each way that never read",
        AS_FAST,
    ),
    name(
        "name_p50_us",
        "a service's name, median",
        &[Floor::Ratio(1.5)],
    ),
    name("name_p99_us", "a service's name, p99", &[]),
    name(
        "foreign_name_p50_us",
        "a name of the laptop's own network, median",
        &[Floor::Ratio(1.05)],
    ),
    name(
        "foreign_name_p99_us",
        "a name of the laptop's own network, p99",
        &[],
    ),
    name(
        "foreign_first_name_p50_us",
        "the same, names not asked for before, median",
        &[Floor::Ratio(1.05)],
    ),
    name(
        "foreign_first_name_p99_us",
        "the same, names not asked for before, p99",
        &[],
    ),
    name(
        "foreign_first_name_rtt20_p50_us",
        "the same, of a name server 20 ms away, median",
        &[Floor::Ratio(1.05)],
    ),
    Figure {
        more_is_better: true,
        ..alone(
            Group::Idle,
            "idle_10k_throughput_ratio",
            "×",
            "1 flow down beside 10,000 idle flows",
            &[Floor::Value(0.95)],
        )
    },
    alone(
        Group::Idle,
        "idle_flow_bytes_session",
        "bytes",
        "memory of an idle flow, session",
        IDLE_BYTES,
    ),
    alone(
        Group::Idle,
        "idle_flow_bytes_manager",
        "bytes",
        "memory of an idle flow, traffic manager",
        IDLE_BYTES,
    ),
    Figure {
        key: "udp_pps",
        group: Group::Udp,
        unit: "/s",
        title: "datagrams of 1,200 bytes that arrive",
        more_is_better: true,
        base: Some(Way::Direct),
        floors: &[],
    },
    alone(
        Group::Cpu,
        "cpu_s_per_gbit_session",
        "s/Gbit",
        "CPU of the session",
        &[],
    ),
    alone(
        Group::Cpu,
        "cpu_s_per_gbit_manager",
        "s/Gbit",
        "CPU of the traffic manager",
        &[],
    ),
    over_distance(
        "tcp_down_1_rtt20",
        "1 flow down, 20 ms away",
        &[Floor::Ratio(0.8)],
    ),
    over_distance(
        "tcp_down_1_rtt50_loss01",
        "1 flow down, 50 ms away, 0.1 % lost",
        &[Floor::Ratio(1.0)],
    ),
    Figure {
        more_is_better: true,
        ..filtered(
            "http_unmatched_per_s",
            "/s",
            "HTTP/1.1 requests that a filter leaves to the app, 16 connections",
            &[Floor::Ratio(0.8)],
        )
    },
    filtered(
        "http_unmatched_p99_us",
        MICROSECONDS,
        "the same, p99",
        &[Floor::Added(1_000.0)],
    ),
    filtered(
        "http_unmatched_p50_us",
        MICROSECONDS,
        "the same, 1 connection, median",
        &[],
    ),
    filtered(
        "http_matched_p50_us",
        MICROSECONDS,
        "a request that the laptop answers, 1 connection, median",
        &[],
    ),
    alone(
        Group::Filters,
        "http_matched_pingpongs",
        "×",
        "what that takes more than direct, in ping-pongs through kvpn",
        &[Floor::Value(2.0)],
    ),
    filtered(
        "http_unmatched_250_p50_us",
        MICROSECONDS,
        "a request that none of 250 filters of 5 sessions takes, 1 connection, median",
        &[Floor::Added(100.0)],
    ),
    alone(
        Group::Filters,
        "agent_memory_bytes",
        "bytes",
        "memory of an agent with an intercept and no requests yet",
        &[Floor::Value(12.0 * MIB)],
    ),
    alone(
        Group::Filters,
        "agent_image_bytes",
        "bytes",
        "the agent's image, unpacked",
        &[Floor::Value(15e6)],
    ),
    alone(
        Group::Engage,
        "intercept_first_ms",
        "ms",
        "intercept of three pods that have no agent",
        &[Floor::Value(1_000.0)],
    ),
    alone(
        Group::Engage,
        "intercept_again_ms",
        "ms",
        "the same where agents are",
        &[Floor::Value(100.0)],
    ),
    alone(
        Group::Engage,
        "matched_connections_failed",
        "",
        "failed of 10,000 requests that the laptop answers, a connection each, 16 at a time",
        &[Floor::Value(0.0)],
    ),
    Figure {
        more_is_better: true,
        base: Some(Way::Direct),
        ..alone(
            Group::Engage,
            "unengaged_down_1",
            GBITS,
            "1 flow down of a port beside an engaged one",
            &[Floor::Ratio(0.95)],
        )
    },
    Figure {
        base: Some(Way::Pipe),
        ..files(
            "files_read_1",
            GBITS,
            "1 GiB of a mounted file, in order",
            &[Floor::Ratio(0.5)],
        )
    },
    Figure {
        base: Some(Way::Pipe),
        ..files(
            "files_write_1",
            GBITS,
            "1 GiB written to a mounted file, and fsync",
            &[],
        )
    },
    Figure {
        more_is_better: false,
        base: Some(Way::Pipe),
        ..files(
            "files_random_p50_us",
            MICROSECONDS,
            "4 KiB anywhere in a mounted file, median; of the pipe, a byte there and back",
            &[],
        )
    },
    Figure {
        base: Some(Way::Copy),
        ..files(
            "files_small_per_s",
            "/s",
            "10,000 mounted files of 4,000 bytes, by tar",
            &[Floor::Ratio(20.0)],
        )
    },
    files(
        "files_small_busy",
        "",
        "share of the machine's processors that is busy meanwhile",
        &[],
    ),
];
