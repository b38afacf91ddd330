//! What is the matter with which connections, and what an audit must say of them.

use serde_json::{Value, json};

/// What happens to the peers of a group once their connections stand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// Nothing.
    Well,
    /// A fault of `scripts/lab`.
    Fault(&'static [&'static str]),
    /// They forget their connections, and nobody listens any more.
    RebootedAndMute,
    /// Nothing, behind a firewall that follows connections.
    Firewalled,
    /// They forget their connections, behind such a firewall.
    FirewalledAndRebooted,
    /// Such a firewall forgets theirs.
    Forgotten,
}

/// What the kernel's own keepalive makes of them in the end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Opinion {
    /// Answered.
    Heard,
    /// Not answered.
    TimedOut,
    /// ECONNRESET, or EPIPE in CLOSE_WAIT.
    Reset,
    /// It does not ask while data is on its way.
    None,
}

/// One kind of connection.
#[derive(Debug)]
pub struct Row {
    pub name: &'static str,
    /// The condition, as lab-app names it.
    pub condition: &'static str,
    pub fate: Fate,
    /// Peers of both families. Live and dead ones share a network where that must not confuse.
    pub nets: [&'static str; 2],
    /// How many of each variant: family, timestamps, greeted.
    pub count: usize,
    /// The verdicts that are right.
    pub verdicts: &'static [(&'static str, &'static str)],
    pub opinion: Opinion,
    /// Whether the audited host accepted them.
    pub accepted: bool,
}

const fn row(name: &'static str, nets: [&'static str; 2], count: usize) -> Row {
    Row {
        name,
        condition: "idle",
        fate: Fate::Well,
        nets,
        count,
        verdicts: &[("alive", "ack")],
        opinion: Opinion::Heard,
        accepted: false,
    }
}

const SILENT: &[(&str, &str)] = &[("down", "host-silent")];
const RESET: &[(&str, &str)] = &[("rebooted", "reset")];
const UNPROBEABLE: &[(&str, &str)] = &[("undetermined", "unprobeable")];
/// Of a peer that talks anyway a second look may tell as much as a probe.
const TALKS: &[(&str, &str)] = &[("alive", "ack"), ("alive", "data")];

/// The truth.
pub const ROWS: &[Row] = &[
    row("idle", ["10.99.1.0/24", "fd99:0:0:1::/120"], 300),
    Row {
        condition: "busy",
        verdicts: TALKS,
        ..row("busy", ["10.99.2.0/24", "fd99:0:0:2::/120"], 50)
    },
    row("beside-gone", ["10.99.3.0/25", "fd99:0:0:3::/121"], 40),
    Row {
        fate: Fate::Fault(&["gone"]),
        verdicts: SILENT,
        opinion: Opinion::TimedOut,
        ..row("gone", ["10.99.3.128/25", "fd99:0:0:3::80/121"], 60)
    },
    Row {
        fate: Fate::Fault(&["reboot"]),
        verdicts: RESET,
        opinion: Opinion::Reset,
        ..row("rebooted", ["10.99.4.0/24", "fd99:0:0:4::/120"], 60)
    },
    Row {
        fate: Fate::RebootedAndMute,
        verdicts: RESET,
        opinion: Opinion::Reset,
        ..row("rebooted-mute", ["10.99.5.0/24", "fd99:0:0:5::/120"], 40)
    },
    Row {
        fate: Fate::Fault(&["drop"]),
        verdicts: SILENT,
        opinion: Opinion::TimedOut,
        ..row("blackholed", ["10.99.6.0/24", "fd99:0:0:6::/120"], 60)
    },
    Row {
        fate: Fate::Fault(&["icmp", "host"]),
        verdicts: &[("unreachable", "icmp-host")],
        opinion: Opinion::TimedOut,
        ..row("icmp-host", ["10.99.7.0/24", "fd99:0:0:7::/120"], 40)
    },
    Row {
        fate: Fate::Fault(&["icmp", "admin"]),
        verdicts: &[("unreachable", "icmp-admin")],
        opinion: Opinion::TimedOut,
        ..row("icmp-admin", ["10.99.8.0/24", "fd99:0:0:8::/120"], 40)
    },
    Row { fate: Fate::Firewalled, ..row("firewalled", ["10.99.9.0/24", "fd99:0:0:9::/120"], 20) },
    Row {
        fate: Fate::FirewalledAndRebooted,
        verdicts: RESET,
        opinion: Opinion::Reset,
        ..row("firewalled-rebooted", ["10.99.10.0/24", "fd99:0:0:10::/120"], 30)
    },
    Row {
        fate: Fate::Forgotten,
        verdicts: &[("unreachable", "flow-state-lost")],
        opinion: Opinion::TimedOut,
        ..row("forgotten", ["10.99.11.0/24", "fd99:0:0:11::/120"], 30)
    },
    Row {
        condition: "close-wait",
        ..row("close-wait", ["10.99.12.0/24", "fd99:0:0:12::/120"], 40)
    },
    Row { condition: "fin-wait2", ..row("fin-wait2", ["10.99.13.0/24", "fd99:0:0:13::/120"], 40) },
    Row {
        condition: "zero-window",
        verdicts: &[("alive", "zero-window")],
        opinion: Opinion::None,
        ..row("zero-window", ["10.99.14.0/24", "fd99:0:0:14::/120"], 20)
    },
    Row {
        condition: "unread",
        verdicts: TALKS,
        opinion: Opinion::Heard,
        ..row("unread", ["10.99.15.0/24", "fd99:0:0:15::/120"], 20)
    },
    Row {
        condition: "signed",
        verdicts: UNPROBEABLE,
        ..row("signed", ["10.99.16.0/24", "fd99:0:0:16::/120"], 10)
    },
    // Without their mark they have no way.
    row("marked", [MARKED[0], MARKED[1]], 10),
    row("bound", ["10.99.18.0/24", "fd99:0:0:18::/120"], 10),
    // What was on its way when the peer went is repeated for a quarter of an hour: it is the
    // kernel's turn to ask.
    Row {
        condition: "busy",
        fate: Fate::Fault(&["gone"]),
        verdicts: UNPROBEABLE,
        opinion: Opinion::None,
        ..row("gone-while-busy", ["10.99.19.0/24", "fd99:0:0:19::/120"], 10)
    },
    // From here the router's kernel speaks: of IPv4 errors no more than 5, and then one a second.
    Row {
        fate: Fate::Fault(&["route-prohibit"]),
        verdicts: &[("unreachable", "icmp-admin")],
        opinion: Opinion::TimedOut,
        ..row(PROHIBITED, ["10.99.22.0/24", "fd99:0:0:22::/120"], 10)
    },
    Row {
        fate: Fate::Fault(&["no-route"]),
        verdicts: &[("unreachable", "no-route")],
        opinion: Opinion::TimedOut,
        ..row("no-route", ["10.99.23.0/24", "fd99:0:0:23::/120"], 10)
    },
    Row { accepted: true, ..row("accepted-idle", ["10.99.20.0/25", "fd99:0:0:20::/121"], 20) },
    Row {
        accepted: true,
        fate: Fate::Fault(&["gone"]),
        verdicts: SILENT,
        opinion: Opinion::TimedOut,
        ..row("accepted-gone", ["10.99.20.128/25", "fd99:0:0:20::80/121"], 20)
    },
    Row {
        accepted: true,
        fate: Fate::Fault(&["reboot"]),
        verdicts: RESET,
        opinion: Opinion::Reset,
        ..row("accepted-rebooted", ["10.99.21.0/24", "fd99:0:0:21::/120"], 20)
    },
];

const PROHIBITED: &str = "prohibited";
/// The peers that only marked packets reach.
pub const MARKED: [&str; 2] = ["10.99.17.0/24", "fd99:0:0:17::/120"];
/// Their mark.
pub const MARK: u32 = 7;
/// First port of the server whose listeners are closed.
pub const MUTE_PORT: u16 = 9200;
/// First port of the audited host's server with a socket for each family.
pub const APART_PORT: u16 = 9300;

/// How a connection speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Family {
    V4,
    V6,
    Mapped,
}

impl Family {
    pub const ALL: [Family; 3] = [Family::V4, Family::V6, Family::Mapped];
}

impl Row {
    /// Returns the row of a group.
    pub fn of(group: &str) -> &'static Row {
        let name = group.split('/').next().expect("at least one part");
        ROWS.iter().find(|row| row.name == name).unwrap_or_else(|| panic!("group {group}"))
    }

    /// Describes a group for lab-app, which opens it from where it runs: `count` connections, or
    /// none if there are no such.
    pub fn group(
        &self,
        family: Family,
        timestamps: bool,
        greeted: bool,
        count: usize,
    ) -> Option<Value> {
        // A key for IPv4 peers of an IPv6 socket is a matter of its own.
        if self.condition == "signed" && family == Family::Mapped {
            return None;
        }
        // One connection draws no more errors than there may be.
        let is_one = self.name == PROHIBITED && family != Family::V6;
        if is_one && !(family == Family::V4 && timestamps && greeted) {
            return None;
        }
        let count = if is_one { 1 } else { count };
        let net = self.nets[usize::from(family == Family::V6)];
        let port = match (self.fate, self.accepted, family) {
            (Fate::RebootedAndMute, ..) => MUTE_PORT,
            (_, true, Family::V4) => APART_PORT,
            _ => 9100,
        };
        let mut group = json!({
            "name": format!("{}/{family:?}/{timestamps}/{greeted}", self.name),
            "count": count, "condition": self.condition, "greeted": greeted,
            "keepalive": timestamps, "port": port,
            "mark": if self.name == "marked" { MARK } else { 0 },
            "device": (self.name == "bound").then_some("up0"),
        });
        if self.accepted {
            group["from"] = net.into();
            group["peers"] =
                if family == Family::V6 { "fd98::1/128" } else { "10.98.0.1/32" }.into();
        } else {
            group["peers"] = net.into();
            group["mapped"] = (family == Family::Mapped).into();
        }
        Some(group)
    }
}
