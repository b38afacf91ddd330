//! The arguments of `keepsweep audit`.
#![forbid(unsafe_code)]

use super::{KeepaliveArgs, OutputArgs, PaceArgs, digits, duration, port_range, positive_duration};
use crate::audit::{TCP_STATES, state_name};
use crate::io::host::TcpState;
use clap::builder::NonEmptyStringValueParser;
use ipnet::IpNet;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

pub(super) const SHORT_FOOTER: &str =
    "Examples, states, findings and exit codes: keepsweep audit --help";

pub(super) const LONG_FOOTER: &str = "\
Connections that are asked: those in ESTABLISHED, CLOSE_WAIT and FIN_WAIT2, unless --tcp-state says
otherwise; the kernel itself ends those in the other states. Public peers are asked, too: they are
this host's own connections. On them nothing is sent but keepalives, as the kernel would send them;
no connection is closed, and none dies of being asked. They are asked at once: the idle time of a
profile does not apply.

Where a connection stays silent, its peer's host is asked by up to three SYNs in 5 s, from the same
address to the same port, once for all connections between these. A SYN-ACK is answered with RST,
so that no application hears of it. If anything comes back, the connection is asked once more, and
only then judged. --keepalives-only does without.

States:
  alive         it answered, or was heard meanwhile
  down          silent through the whole probe plan, and nothing points at the path or at us
  rebooted      it no longer knows the connection: a RST that answers our probe
  unreachable   the network says so: ICMP, unanswered ARP or ND, no route; or the connection is
                silent though the host is up: a firewall has forgotten it (flow-state-lost)
  undetermined  our own side was sick, the connection cannot be probed (signed segments, data in
                flight throughout), or the run was interrupted: nobody is accused

Findings, also of live connections:
  keepalive-off  SO_KEEPALIVE is off, and no data moved for longer than --keepalive-off-over
  idle-azure, idle-aws, idle-gcp, idle-ipvs, idle-nat
                 not a segment was seen for longer than such a middlebox remembers a connection:
                 4min (Azure), 350s (AWS), 10min (Google Cloud), 15min (IPVS), 2h 4min (RFC 5382)

Examples:
  What is there, and whose it is; sends nothing:
    sudo keepsweep audit --dry-run
  Which connections of this host are dead, and why:
    sudo keepsweep audit --only down,rebooted,unreachable
  Of one process, silent for an hour, as NDJSON:
    sudo keepsweep audit --pid 4711 --idle-over 1h --format ndjson
  In all containers, again every minute, changes only:
    sudo keepsweep audit --netns all --every 60s

Exit codes:
  0    every peer is alive, or there is no connection to ask
  1    some peer is not (undetermined included)
  2    bad usage or input
  3    missing privilege or kernel feature, an OS error, or output that could not be written in full
  130  interrupted, after writing what is known
A closed pipe ends the run quietly with 0.";

/// The arguments of `keepsweep audit`.
#[derive(Debug, clap::Args)]
pub struct AuditArgs {
    /// Look into this network namespace, or into 'all' [default: this one, or that of --pid]
    ///
    /// As `ip netns` names it, or as records do: `net:[4026531840]`.
    #[arg(long, value_name = "NAME|all", value_parser = NonEmptyStringValueParser::new(),
          help_heading = "Connections")]
    pub netns: Option<String>,

    /// Only connections of this process; may be repeated
    #[arg(long, value_name = "N", value_parser = pid, help_heading = "Connections")]
    pub pid: Vec<u32>,

    /// Only connections to these peers: an address or a prefix; may be repeated
    #[arg(long, value_name = "CIDR", value_parser = prefix, help_heading = "Connections")]
    pub peer: Vec<IpNet>,

    /// Only connections on which no data moved, either way, for longer than this
    ///
    /// Keepalives, ours and the kernel's, are no data.
    #[arg(long, value_name = "D", value_parser = duration, help_heading = "Connections")]
    pub idle_over: Option<Duration>,

    /// Only connections in these states, or in 'all' but LISTEN [default: established, close-wait,
    /// fin-wait-2]
    ///
    /// As `ss` names them: established, close-wait, fin-wait-2, syn-sent, syn-recv, fin-wait-1,
    /// time-wait, last-ack, closing. Only the first three can be asked, and of these no fin-wait-2 that
    /// no process holds any more; the others are listed, and undetermined.
    #[arg(long, value_name = "S[,S...]", value_delimiter = ',', value_parser = tcp_state,
          help_heading = "Connections")]
    pub tcp_state: Vec<OneOrAll>,

    /// Find fault with connections without SO_KEEPALIVE on which no data moved for longer than this
    #[arg(long, value_name = "D", value_parser = duration,
          default_value = "2h", help_heading = "Connections")]
    pub keepalive_off_over: Duration,

    /// Ask again every so often, and write changes only: new, gone, and of another state
    ///
    /// From one beginning to the next; an audit that takes longer is followed by the next one at
    /// once. Until it is interrupted. Connections that are gone or of another state are written
    /// whatever --only says.
    #[arg(long, value_name = "D", value_parser = positive_duration, help_heading = "Probing")]
    pub every: Option<Duration>,

    /// What keepalives are sent.
    #[command(flatten)]
    pub keepalive: KeepaliveArgs,

    /// Send nothing but keepalives: ask no host of a silent connection by a fresh SYN
    ///
    /// A connection that a firewall on the path has forgotten is then `down`, as one whose peer is.
    #[arg(long, help_heading = "Probing")]
    pub keepalives_only: bool,

    /// Source ports of fresh SYNs; must not overlap net.ipv4.ip_local_port_range [default: 61000-65534]
    ///
    /// Where the default ones are taken no host is asked, and a note says so.
    #[arg(long, value_name = "LO-HI", value_parser = port_range,
          conflicts_with = "keepalives_only", help_heading = "Probing")]
    pub source_ports: Option<RangeInclusive<u16>>,

    /// How fast, and in which order.
    #[command(flatten)]
    pub pace: PaceArgs,

    /// Where results go.
    #[command(flatten)]
    pub reporting: OutputArgs,

    /// List the connections and send nothing; NDJSON and CSV are what `sweep --flows` reads
    #[arg(long, conflicts_with_all = ["every", "pcap", "only"], help_heading = "Output")]
    pub dry_run: bool,
}

/// A state as given to --tcp-state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OneOrAll {
    /// This one.
    One(TcpState),
    /// Every one but LISTEN and CLOSED.
    All,
}

impl AuditArgs {
    /// Returns the states that were asked for, if any were.
    pub fn tcp_states(&self) -> Option<Vec<TcpState>> {
        let states = self.tcp_state.iter().flat_map(|state| match state {
            OneOrAll::One(state) => vec![*state],
            OneOrAll::All => TCP_STATES.to_vec(),
        });
        let states: Vec<_> = states.collect();
        (!states.is_empty()).then_some(states)
    }
}

fn tcp_state(text: &str) -> Result<OneOrAll, String> {
    // As tcp(7) and the kernel write it, too: CLOSE_WAIT.
    let name = text.to_ascii_lowercase().replace('_', "-");
    if name == "all" {
        return Ok(OneOrAll::All);
    }
    let found = TCP_STATES.into_iter().find(|state| state_name(*state) == name);
    found.map(OneOrAll::One).ok_or_else(|| {
        format!("no such state; there are all, {}", TCP_STATES.map(state_name).join(", "))
    })
}

fn pid(text: &str) -> Result<u32, String> {
    match digits(text) {
        Some(0) | None => Err("expected the number of a process".into()),
        Some(pid) => Ok(pid),
    }
}

fn prefix(text: &str) -> Result<IpNet, String> {
    let parsed = match text.parse::<IpAddr>() {
        Ok(address) => Ok(IpNet::from(address)),
        Err(_) => text.parse::<IpNet>(),
    };
    parsed.map_err(|_| "expected an IP address or a CIDR, such as 10.1.0.0/16".into())
}

#[cfg(test)]
mod tests {
    use super::super::{Args, Command};
    use super::*;
    use clap::Parser;

    fn parsed(more: &str) -> Result<AuditArgs, String> {
        let line = format!("keepsweep audit {more}");
        match Args::try_parse_from(line.split_whitespace())
            .map_err(|error| error.to_string())?
            .command
        {
            Command::Audit(args) => Ok(*args),
            other => panic!("not an audit: {other:?}"),
        }
    }

    #[test]
    fn states_have_the_names_of_ss_and_of_the_manual() {
        let states = |more: &str| parsed(more).expect("valid").tcp_states();
        assert_eq!(states(""), None);
        assert_eq!(
            states("--tcp-state established,CLOSE_WAIT --tcp-state fin-wait-2"),
            Some(vec![TcpState::Established, TcpState::CloseWait, TcpState::FinWait2])
        );
        assert_eq!(states("--tcp-state all"), Some(TCP_STATES.to_vec()));
        for wrong in ["listen", "closed", "estab", ""] {
            let error = parsed(&format!("--tcp-state={wrong}")).expect_err("no such state");
            assert!(error.contains("there are all, established, "), "{error}");
        }
    }

    #[test]
    fn peers_are_addresses_or_prefixes() {
        let peers = parsed("--peer 10.0.0.7 --peer fd00::/8").expect("valid").peer;
        let texts: Vec<String> = peers.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["10.0.0.7/32", "fd00::/8"]);
        for wrong in ["10.0.0.0/33", "db1", "10.0.0.1:80", ""] {
            assert!(parsed(&format!("--peer={wrong}")).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_value_is_said_of_its_option() {
        let wrong = |more: &str| {
            let words = format!("keepsweep audit {more}");
            let read = Args::read(words.split_whitespace().map(Into::into));
            read.expect_err("wrong").to_string()
        };
        let why = "negative; expected a duration such as 250ms, 75s or 2h";
        for option in ["idle-over", "keepalive-off-over", "every", "interval"] {
            let said = format!("invalid value '-1s' for '--{option} <D>': {why}");
            let error = wrong(&format!("--{option} -1s"));
            assert!(error.contains(&said), "{error}");
        }
        let required = |option: &str| format!("a value is required for '--{option}>'");
        for (words, said) in [
            ("--pid -1", "invalid value '-1' for '--pid <N>'".to_owned()),
            ("--dry-run -1", "unexpected value '-1' for '--dry-run'".to_owned()),
            ("--every=1s -1", "unexpected argument '-1'".to_owned()),
            ("-- -1", "unexpected argument '-1'".to_owned()),
            ("-- --every -1", "unexpected argument '--every'".to_owned()),
            ("-o -1 --every -1", "invalid value '-1' for '--every <D>'".to_owned()),
            ("--idle-over --pid 1", required("idle-over <D")),
            ("--netns=", required("netns <NAME|all")),
        ] {
            let error = wrong(words);
            assert!(error.contains(&said), "{words}: {error}");
        }
    }

    #[test]
    fn processes_have_numbers_and_what_changes_connections_is_not_taken() {
        assert_eq!(parsed("--pid 1 --pid 4294967295").expect("valid").pid, [1, u32::MAX]);
        for wrong in [
            "--pid 0",
            "--pid -1",
            "--pid +5",
            "--pid sshd",
            "--every 0s",
            "--kill down",
            "--arm 60,5,3",
            "--yes",
        ] {
            assert!(parsed(wrong).is_err(), "{wrong}");
        }
        for wrong in ["--dry-run --every 5s", "--dry-run --pcap x", "--dry-run --only down"] {
            assert!(parsed(wrong).expect_err("contradiction").contains("cannot be used with"));
        }
    }
}
