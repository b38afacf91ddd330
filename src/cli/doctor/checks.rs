//! From facts to findings: what each fact means to a sweep, and the remedy.
#![forbid(unsafe_code)]

use crate::io::IoError;
use crate::io::facts::{Conntrack, Kernel, Link};
use crate::io::guard::GuardError;
use crate::io::host::HostError;
use crate::io::ports::PortsError;
use crate::io::privilege::{MissingCapabilities, SWEEP};
use crate::io::xdp::{Attached, FrameLayout, MAX_QUEUES, Queue};
use indicatif::{HumanBytes, HumanCount};
use std::io;
use std::num::NonZero;
use std::ops::RangeInclusive;
use std::time::Duration;

/// Descriptors that are open whatever is swept: standard streams, capture, maps, sockets to the
/// kernel.
const FILES_ANYWAY: u64 = 40;
/// As many senders as a sweep may have.
const MAX_SENDERS: u64 = 16;
/// Share of the connection tracking table, in percent, from which on it is nearly full.
const NEARLY_FULL: u64 = 80;
/// What fits into a page of 4,096 octets beside what XDP and the stack keep there.
const ONE_PAGE_MTU: u32 = 3498;
/// First Linux with tcx.
const TCX_SINCE: (u32, u32) = (6, 6);

/// How a check came out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Status {
    /// Nothing to do.
    Ok,
    /// A sweep can run, but not everything is as it could be, or it could not be looked at.
    Warn,
    /// A sweep cannot run.
    Missing,
}

impl Status {
    /// Returns its name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Status::Ok => "ok",
            Status::Warn => "warn",
            Status::Missing => "missing",
        }
    }
}

/// A finding.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Check {
    /// What was looked at: part of the record format.
    pub check: &'static str,
    /// The interface that it is about, if about one.
    pub interface: Option<String>,
    /// How it came out.
    pub status: Status,
    /// What was found.
    pub found: String,
    /// What to do about it, unless it is [`Status::Ok`].
    pub remedy: Option<String>,
}

fn ok(check: &'static str, found: impl Into<String>) -> Check {
    Check { check, interface: None, status: Status::Ok, found: found.into(), remedy: None }
}

fn warn(check: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Check {
    Check { status: Status::Warn, remedy: Some(remedy.into()), ..ok(check, found) }
}

fn missing(check: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Check {
    Check { status: Status::Missing, remedy: Some(remedy.into()), ..ok(check, found) }
}

/// Privileges of this process, and whether they reach BPF.
pub fn capabilities(
    held: &Result<(), MissingCapabilities>,
    in_user_namespace: Option<bool>,
) -> Check {
    let names: Vec<_> = SWEEP.iter().map(ToString::to_string).collect();
    let names = names.join(", ");
    match held {
        Err(lacking) => {
            let text = lacking.to_string();
            let (found, remedy) = text.split_once("; ").unwrap_or((&text, "try sudo"));
            missing("capabilities", found, remedy)
        }
        Ok(()) if in_user_namespace == Some(true) => warn(
            "capabilities",
            format!("{names}, but in a user namespace, where they do not reach BPF"),
            "run outside of it: as root of the host, in a container without user remapping",
        ),
        Ok(()) => ok("capabilities", names),
    }
}

/// The version of the kernel. Distributions carry features back: [`tcx`] has the last word.
pub fn kernel(kernel: Option<&Kernel>) -> Check {
    const CHECK: &str = "kernel";
    let Some(kernel) = kernel else {
        return warn(CHECK, "unknown: /proc/sys cannot be read", "mount /proc");
    };
    match kernel.version() {
        Some(version) if version >= TCX_SINCE => ok(CHECK, &kernel.release),
        _ => warn(
            CHECK,
            format!("{}; the guard came with tcx, in 6.6", kernel.release),
            "boot Linux 6.6 or newer, unless tcx below is ok",
        ),
    }
}

/// Whether the guard's programs really load.
pub fn guard(rehearsed: Result<(), GuardError>) -> Check {
    match rehearsed {
        Ok(()) => ok("guard", "the kernel's verifier takes its programs"),
        Err(GuardError::Load { reason, remedy }) => missing("guard", reason, remedy),
        Err(error) => missing("guard", error.to_string(), "sudo keepsweep doctor"),
    }
}

/// Whether `--io xdp` finds what it needs in the kernel. Other paths do without.
pub fn xdp(rehearsed: Result<(), IoError>) -> Check {
    const CHECK: &str = "xdp";
    match rehearsed {
        Ok(()) => ok(CHECK, "AF_XDP sockets can be opened, and the verifier takes the XDP program"),
        Err(IoError { operation, object, source, remedy }) => {
            let remedy = if remedy.is_empty() { "--io packet does without" } else { remedy };
            warn(CHECK, format!("no --io xdp: {operation} on {object}: {source}"), remedy)
        }
    }
}

/// What `--io xdp` can expect of an interface; `None` if it cannot be asked for it.
pub fn xdp_path(seen: &Seen) -> Option<Check> {
    let Link { interface, queues, xdp_features, xdp_programs, .. } = &seen.link;
    if !seen.is_usable() || interface.loopback || !interface.has_mac {
        return None;
    }
    let name = &interface.name;
    let queues = queues.unwrap_or(1);
    let is_native = xdp_features.is_none_or(|features| features.is_native());
    let is_too_long = interface.mtu > ONE_PAGE_MTU
        && is_native
        && xdp_features.is_none_or(|features| !features.is_multi_buffer());
    let mut parts = vec![match xdp_features {
        None => "XDP modes unknown before Linux 6.3".to_owned(),
        Some(features) if !features.is_native() => {
            "in the stack only (skb): hardly faster than --io packet".to_owned()
        }
        Some(features) if features.is_zero_copy() => "in the driver, zero-copy".to_owned(),
        Some(_) => "in the driver, frames are copied".to_owned(),
    }];
    parts.push(match queues {
        1 => "1 queue".to_owned(),
        queues if queues > MAX_QUEUES => format!("{queues} queues, {MAX_QUEUES} of them used"),
        queues => format!("{queues} queues"),
    });
    let remedy = if let Some(&(mode, program)) = xdp_programs.first() {
        parts.push(format!("XDP program {program} is attached already ({})", mode.name()));
        Some(format!(
            "one interface has one program: take that off (ip link set dev {name} xdp off, or end who \
             holds it: bpftool link), or use --io packet"
        ))
    } else if is_too_long {
        parts.push(format!("MTU {}", interface.mtu));
        Some(format!(
            "without multi-buffer XDP a driver takes an MTU of about {ONE_PAGE_MTU}: ip link set dev \
             {name} mtu 1500, --xdp-mode skb, or --io packet"
        ))
    } else {
        None
    };
    let found = parts.join(", ");
    let check = match remedy {
        None => ok("xdp-path", found),
        Some(remedy) => warn("xdp-path", found, remedy),
    };
    Some(Check { interface: Some(name.clone()), ..check })
}

/// An interface, and the tcx programs on it.
pub struct Seen {
    /// The interface.
    pub link: Link,
    /// Names of its tcx programs, on ingress and egress.
    pub tcx: Result<[Vec<String>; 2], GuardError>,
    /// Whether it was asked for by name.
    pub is_chosen: bool,
}

impl Seen {
    /// Whether frames can leave through it now.
    fn is_usable(&self) -> bool {
        self.link.interface.up && !self.link.interface.is_port
    }
}

/// Whether the kernel has tcx, by asking what is attached.
pub fn tcx(seen: &[Seen], may_ask: bool) -> Check {
    const CHECK: &str = "tcx";
    match seen.iter().map(|seen| &seen.tcx).next() {
        None => warn(CHECK, "no interface to look at", "see: ip link"),
        Some(Ok(_)) => ok(CHECK, "the kernel has it: the guard can be attached"),
        Some(Err(_)) if !may_ask => warn(
            CHECK,
            "could not look: needs CAP_NET_ADMIN outside any user namespace",
            "sudo keepsweep doctor",
        ),
        Some(Err(GuardError::Query { reason, remedy, .. })) => missing(CHECK, reason, remedy),
        Some(Err(error)) => missing(CHECK, error.to_string(), "boot Linux 6.6 or newer"),
    }
}

/// Whether the kernel describes its types.
pub fn btf(kernel: Option<&Kernel>) -> Check {
    match kernel {
        Some(kernel) if kernel.btf => ok("btf", "/sys/kernel/btf/vmlinux"),
        _ => warn(
            "btf",
            "no /sys/kernel/btf/vmlinux; a sweep does without, reading this host's own \
             connections does not",
            HostError::NO_BTF,
        ),
    }
}

/// Whether this host's own connections can be read; `read` says how many there are.
pub fn connections(read: Result<usize, HostError>) -> Check {
    const CHECK: &str = "connections";
    match read {
        Ok(count) => ok(
            CHECK,
            format!("can be read: {} in this network namespace", HumanCount(count as u64)),
        ),
        Err(error) => {
            let found = format!("{}; audit cannot run, a sweep can", error.without_remedy());
            let remedy = match error.remedy() {
                "" => "sudo keepsweep doctor",
                remedy => remedy,
            };
            warn(CHECK, found, remedy)
        }
    }
}

/// Whether resets can be kept from sockets however their packets are translated.
pub fn shield(rehearsed: Result<(), IoError>) -> Check {
    const CHECK: &str = "shield";
    match rehearsed {
        Ok(()) => {
            ok(CHECK, "resets can be kept from sockets, however this host translates addresses")
        }
        Err(IoError { operation, object, source, remedy }) => warn(
            CHECK,
            format!(
                "{operation} {object}: {source}; an audit asks less of connections whose addresses \
                 this host may translate"
            ),
            remedy,
        ),
    }
}

/// What stays hidden from an audit.
pub fn audit_reach(may_enter: bool, may_look: bool) -> Check {
    const CHECK: &str = "audit-reach";
    let hidden = match (may_enter, may_look) {
        (true, true) => {
            return ok(CHECK, "every network namespace, and the processes of every user");
        }
        (true, false) => {
            "without CAP_SYS_PTRACE an audit misses network namespaces that only processes of other \
             users are in"
        }
        (false, true) => "without CAP_SYS_ADMIN an audit sees this network namespace alone",
        (false, false) => {
            "without CAP_SYS_ADMIN and CAP_SYS_PTRACE an audit sees this network namespace alone"
        }
    };
    warn(CHECK, hidden, "audit with sudo")
}

/// How the kernel runs BPF.
pub fn bpf_settings(kernel: Option<&Kernel>) -> Check {
    const CHECK: &str = "bpf-settings";
    let unprivileged = match kernel.and_then(|kernel| kernel.unprivileged_bpf_disabled) {
        Some(0) => "open to everyone",
        Some(_) => "for the privileged only",
        None => "for whom is unknown",
    };
    match kernel.and_then(|kernel| kernel.bpf_jit) {
        Some(0) => warn(
            CHECK,
            format!("BPF {unprivileged}; interpreted, which costs at full rate"),
            "sysctl net.core.bpf_jit_enable=1",
        ),
        Some(_) => ok(CHECK, format!("BPF {unprivileged}; compiled")),
        None => ok(CHECK, format!("BPF {unprivileged}")),
    }
}

/// Whether the source ports that a sweep takes unless told otherwise are free.
pub fn source_ports(wanted: &RangeInclusive<u16>, found: Result<(), PortsError>) -> Check {
    const CHECK: &str = "source-ports";
    let range = format!("{}-{}", wanted.start(), wanted.end());
    match found {
        Ok(()) => ok(CHECK, format!("{range}: outside the ephemeral ports, and none in use")),
        Err(PortsError::Ephemeral { ephemeral, .. }) => {
            let (lo, hi) = (*ephemeral.start(), *ephemeral.end());
            // The wider side of the two: below, from the first port that needs no privilege.
            let below = (1024.min(lo), lo.saturating_sub(1));
            let above = (hi.saturating_add(1), *wanted.end());
            let width = |(lo, hi): (u16, u16)| u32::from(hi).saturating_sub(u32::from(lo));
            let (from, to) = if width(above) >= width(below) { above } else { below };
            let found = format!("{range} overlap this host's ephemeral ports {lo}-{hi}");
            let remedy = if from <= to {
                format!(
                    "sweep with --source-ports {from}-{to}, or narrow the ephemeral ones: \
                         sysctl net.ipv4.ip_local_port_range=\"32768 60999\""
                )
            } else {
                "narrow the ephemeral ones: sysctl net.ipv4.ip_local_port_range=\"32768 60999\""
                    .to_owned()
            };
            missing(CHECK, found, remedy)
        }
        Err(PortsError::InUse { holders, total, .. }) => {
            let listed: Vec<_> = holders.iter().map(ToString::to_string).collect();
            let more = match total.saturating_sub(holders.len()) {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            let found = format!("{range} in use: {}{more}", listed.join(", "));
            missing(CHECK, found, "sweep with others, free ones: --source-ports LO-HI")
        }
        Err(PortsError::Io(IoError { operation, object, source, remedy })) => missing(
            CHECK,
            format!("{operation} on {object}: {source}"),
            if remedy.is_empty() { "see that /proc is mounted" } else { remedy },
        ),
    }
}

/// Whether as many files may be open as guard and paths need.
pub fn open_files(limit: io::Result<(u64, u64)>, links: &[Link]) -> Check {
    const CHECK: &str = "open-files";
    let (soft, hard) = match limit {
        Ok(limit) => limit,
        Err(error) => return warn(CHECK, format!("unknown: {error}"), "see: ulimit -n"),
    };
    let interfaces = links.iter().map(|link| &link.interface);
    let guarded = interfaces.filter(|interface| interface.enabled && !interface.is_port).count();
    let guarded = guarded as u64;
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get) as u64;
    let senders = cores.min(MAX_SENDERS);
    // The guard takes one an interface and one more where frames leave, a path one and its senders.
    let least = FILES_ANYWAY + guarded + 2 + senders;
    let most = least.max(FILES_ANYWAY + guarded * (3 + senders));
    let found = format!("{} at most", HumanCount(soft));
    let raise = |need: u64| match need <= hard {
        true => format!("ulimit -n {need}"),
        false => format!("as root: prlimit --pid $$ --nofile={need}"),
    };
    match soft {
        _ if soft < least => {
            missing(CHECK, format!("{found}; a sweep takes {least} here"), raise(most))
        }
        _ if soft < most => {
            let found = format!("{found}; targets behind every interface would take {most}");
            warn(CHECK, found, raise(most))
        }
        _ => ok(CHECK, format!("{found}; a sweep takes {most} here at most")),
    }
}

/// Memory that may be locked. Of what a sweep opens only the frames of `--io xdp` count against it: BPF
/// does not since Linux 5.11, packet rings never did.
pub fn locked_memory(limit: io::Result<u64>) -> Check {
    let limit = match limit {
        Err(error) => format!("unknown ({error})"),
        Ok(u64::MAX) => "without limit".to_owned(),
        Ok(octets) => format!("{} at most", HumanBytes(octets)),
    };
    let [copied, zero_copy] = [FrameLayout::Packed, FrameLayout::Chunks]
        .map(|layout| HumanBytes(Queue::usual_octets(layout)));
    let found = format!(
        "{limit}; only --io xdp locks any, {copied} a queue, {zero_copy} with zero-copy, unless \
         CAP_IPC_LOCK is held"
    );
    ok("locked-memory", found)
}

/// What this host's connection tracking does to probes.
pub fn conntrack(conntrack: Option<Conntrack>) -> Check {
    const CHECK: &str = "conntrack";
    let Some(table) = conntrack else {
        return ok(CHECK, "not in use in this network namespace");
    };
    let mut found =
        format!("{} of {} entries in use", HumanCount(table.count), HumanCount(table.max));
    let on_off = |on: bool| if on { "on" } else { "off" };
    let settings = [
        table.tcp_loose.map(|on| format!("tcp_loose {}", on_off(on))),
        table.be_liberal.map(|on| format!("be_liberal {}", on_off(on))),
        table.established_s.map(|span| format!("idle connections kept {}", seconds(span))),
    ];
    for setting in settings.into_iter().flatten() {
        found.push_str(", ");
        found.push_str(&setting);
    }
    found.push_str("; frames of the packet path pass it by, the raw path takes an entry a peer");
    if let Some(span) = table.syn_sent_s {
        found.push_str(&format!(" for {}", seconds(span)));
    }
    if table.count.saturating_mul(100) < table.max.saturating_mul(NEARLY_FULL) {
        return ok(CHECK, found);
    }
    let remedy = format!(
        "a full table refuses what the raw path sends, and this host's own connections: sysctl \
         net.netfilter.nf_conntrack_max={}",
        table.max.saturating_mul(2)
    );
    warn(CHECK, found, remedy)
}

fn seconds(span: u64) -> String {
    humantime::format_duration(Duration::from_secs(span)).to_string()
}

/// How many neighbours the kernel can keep apart, which matters where it resolves them.
pub fn neighbours(at_most: [Option<u64>; 2]) -> Check {
    const CHECK: &str = "neighbour-table";
    let said: Vec<_> = ["IPv4", "IPv6"]
        .iter()
        .zip(at_most)
        .filter_map(|(family, limit)| limit.map(|limit| format!("{} {family}", HumanCount(limit))))
        .collect();
    if said.is_empty() {
        return ok(CHECK, "its size is that of the first network namespace");
    }
    let found = format!(
        "{} at most; only the raw path uses it, the packet path asks for itself",
        said.join(", ")
    );
    ok(CHECK, found)
}

/// Whether there is any interface to sweep through.
pub fn interfaces(seen: &[Seen]) -> Check {
    const CHECK: &str = "interfaces";
    let usable = seen.iter().filter(|seen| seen.is_usable()).count();
    let beyond = seen.iter().filter(|seen| seen.is_usable() && !seen.link.interface.loopback);
    match (usable, beyond.count()) {
        (0, _) => missing(CHECK, "none is up", "ip link set dev IFACE up"),
        (_, 0) => warn(CHECK, "only the loopback is up", "ip link set dev IFACE up"),
        (usable, _) => ok(CHECK, format!("{usable} of {} can be used", seen.len())),
    }
}

/// What an interface can do.
pub fn interface(seen: &Seen) -> Check {
    let Seen { link, is_chosen, .. } = seen;
    let name = &link.interface.name;
    let on = |check: Check| Check { interface: Some(name.clone()), ..check };
    let unusable = |found: &str, remedy: String| match *is_chosen {
        true => on(missing("interface", found, remedy)),
        false => on(warn("interface", found, remedy)),
    };
    let interface = &link.interface;
    if !interface.enabled {
        let found = "switched off";
        return match *is_chosen {
            true => unusable(found, format!("ip link set dev {name} up")),
            // Many a host has some that nobody means to use.
            false => on(ok("interface", found)),
        };
    }
    if !interface.up {
        let remedy = format!("check the cable, or the other end: ip link show dev {name}");
        return unusable("up, but without carrier", remedy);
    }
    let found = describe(seen);
    if interface.is_port {
        let remedy = "probe through the bridge, bond or team itself".to_owned();
        return match *is_chosen {
            true => unusable(&found, remedy),
            false => on(ok("interface", found)),
        };
    }
    if !link.xdp_programs.is_empty() {
        let remedy = format!(
            "an XDP program runs before keepsweep hears: what it drops or redirects reads as \
             silence; let it pass ARP, ND, ICMP and TCP to the source ports: bpftool net show dev \
             {name}"
        );
        return on(warn("interface", found, remedy));
    }
    if *is_chosen && interface.addresses.is_empty() {
        let remedy = "give it one, or probe with --source from another's".to_owned();
        return on(warn("interface", found, remedy));
    }
    on(ok("interface", found))
}

fn describe(seen: &Seen) -> String {
    let Seen { link, tcx, .. } = seen;
    let interface = &link.interface;
    let path = match () {
        () if interface.is_port => "port of a bridge, bond or team, which gets what it hears",
        () if interface.loopback => "loopback: raw path",
        () if interface.has_mac => "packet path",
        () => "no MAC address: raw path",
    };
    let mut parts = vec![path.to_owned()];
    parts.extend(link.driver.clone());
    parts.push(format!("MTU {}", interface.mtu));
    if interface.addresses.is_empty() {
        parts.push("no address".to_owned());
    }
    match link.queues {
        Some(1) => parts.push("1 queue".to_owned()),
        Some(queues) => parts.push(format!("{queues} queues")),
        None => {}
    }
    parts.push(match link.xdp_features {
        Some(features) if features.is_zero_copy() => "XDP native, zero-copy".to_owned(),
        Some(features) if features.is_native() => "XDP native".to_owned(),
        Some(_) => "XDP generic only".to_owned(),
        None => "XDP modes unknown".to_owned(),
    });
    for (mode, id) in &link.xdp_programs {
        let mode = match mode {
            Attached::Drv => "native",
            Attached::Skb => "generic",
            Attached::Hw => "offloaded",
        };
        parts.push(format!("XDP program {id} attached ({mode})"));
    }
    if let Ok(programs) = tcx {
        for (direction, names) in ["ingress", "egress"].iter().zip(programs) {
            if !names.is_empty() {
                parts.push(format!("tcx {direction}: {}", names.join(" ")));
            }
        }
    }
    parts.join(", ")
}

#[cfg(test)]
mod tests;
