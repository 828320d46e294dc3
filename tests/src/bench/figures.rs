//! The figures: their names, which stay, and the floors under them.

mod all;

use std::fmt;

pub use all::ALL;

/// A way into the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// Connected, by the pod's address.
    Kvpn,
    /// From a laptop that may reach the pod over the same wire.
    Direct,
    /// Raw bytes through the API server, as kvpn's tunnel goes.
    Pipe,
    /// `kubectl cp`.
    Copy,
}

impl Way {
    /// Those of connections.
    pub const NETWORK: [Self; 3] = [Self::Kvpn, Self::Direct, Self::Pipe];

    pub fn name(self) -> &'static str {
        match self {
            Self::Kvpn => "kvpn",
            Self::Direct => "direct",
            Self::Pipe => "pipe",
            Self::Copy => "cp",
        }
    }
}

/// What is measured together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    Data,
    Latency,
    Connect,
    Dns,
    Idle,
    Udp,
    Cpu,
    Rtt,
    Filters,
    Engage,
    Files,
}

impl Group {
    pub const ALL: [Self; 11] = [
        Self::Data,
        Self::Latency,
        Self::Connect,
        Self::Dns,
        Self::Idle,
        Self::Udp,
        Self::Cpu,
        Self::Rtt,
        Self::Filters,
        Self::Engage,
        Self::Files,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Data => "data",
            Self::Latency => "latency",
            Self::Connect => "connect",
            Self::Dns => "dns",
            Self::Idle => "idle",
            Self::Udp => "udp",
            Self::Cpu => "cpu",
            Self::Rtt => "rtt",
            Self::Filters => "filters",
            Self::Engage => "engage",
            Self::Files => "files",
        }
    }
}

/// What must hold.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Floor {
    /// Of the ratio to another way.
    Ratio(f64),
    /// Of what is more than another way's.
    Added(f64),
    /// Of kvpn's own figure.
    Value(f64),
}

/// A figure.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figure {
    /// Its key in the JSON.
    pub key: &'static str,
    pub group: Group,
    pub unit: &'static str,
    /// For people.
    pub title: &'static str,
    pub more_is_better: bool,
    /// What kvpn is compared with.
    pub base: Option<Way>,
    pub floors: &'static [Floor],
}

impl Figure {
    /// The figure of that key.
    pub fn find(key: &str) -> Option<&'static Self> {
        ALL.iter().find(|figure| figure.key == key)
    }

    /// Whether a value is on the right side of a bound.
    pub fn meets(&self, value: f64, bound: f64) -> bool {
        match self.more_is_better {
            true => value >= bound,
            false => value <= bound,
        }
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.key)
    }
}

/// Figures by keys and names of groups; all when none is given.
pub fn select(names: &[String]) -> Result<Vec<&'static Figure>, String> {
    if names.is_empty() {
        return Ok(ALL.iter().collect());
    }
    let known = |name: &String| {
        let group = Group::ALL.into_iter().find(|group| group.name() == name);
        group.is_some() || Figure::find(name).is_some()
    };
    if let Some(unknown) = names.iter().find(|name| !known(name)) {
        let groups: Vec<&str> = Group::ALL.into_iter().map(Group::name).collect();
        return Err(format!(
            "nothing is called {unknown}; there are {} and each figure by its key, such as {}",
            groups.join(", "),
            ALL[0].key
        ));
    }
    let chosen = |figure: &&Figure| {
        names
            .iter()
            .any(|name| name == figure.key || name == figure.group.name())
    };
    Ok(ALL.iter().filter(chosen).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_stay() {
        let keys: Vec<&str> = ALL.iter().map(|figure| figure.key).collect();
        insta::assert_json_snapshot!(keys);
    }

    #[test]
    fn keys_differ() {
        for figure in ALL {
            assert_eq!(Figure::find(figure.key), Some(figure));
        }
    }

    #[test]
    fn figures_are_chosen_by_key_and_by_group() {
        let keys = |names: &[&str]| -> Vec<&str> {
            let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
            let chosen = select(&names).unwrap();
            chosen.iter().map(|figure| figure.key).collect()
        };
        assert_eq!(keys(&["udp", "tcp_up_1"]), ["tcp_up_1", "udp_pps"]);
        assert_eq!(keys(&[]).len(), ALL.len());
        let error = select(&["speed".to_owned()]).unwrap_err();
        assert!(error.starts_with("nothing is called speed; there are data, latency"));
    }

    #[test]
    fn less_is_better_for_times() {
        let time = Figure::find("pingpong_p50_us").unwrap();
        assert!(time.meets(2.4, 2.5) && !time.meets(2.6, 2.5));
        let speed = Figure::find("tcp_up_1").unwrap();
        assert!(speed.meets(0.9, 0.8) && !speed.meets(0.7, 0.8));
    }
}
