//! What a sweep would send, without sending it.
#![forbid(unsafe_code)]

use super::exit::Failure;
use super::sweep::Request;
use crate::engine::{self, Setup};
use crate::io::PathInfo;
use crate::probe::TargetId;
use crate::probe::evidence::Seen;
use crate::probe::given::Given;
use crate::probe::plan::{Close, Plan, ProbeBytes};
use crate::report::table::{by_name, shown};
use crate::wire::{Checksums, LinkType, PcapWriter, describe, parse};
use anyhow::anyhow;
use humantime::format_duration;
use indicatif::HumanCount;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::time::Duration;

/// The first frame to every peer, as the sweep would craft it.
#[derive(Debug, Default)]
pub struct FirstFrames {
    interfaces: Vec<String>,
    octets: Vec<u8>,
    /// In the order in which they would be sent.
    frames: Vec<Frame>,
    /// The index in `frames`. Who has no route is not in it.
    by_target: HashMap<TargetId, usize>,
    /// Of the given flows, by index, why they are not probed.
    obstacles: Vec<Option<Seen>>,
}

#[derive(Debug)]
struct Frame {
    /// Index in `interfaces`.
    interface: usize,
    link: LinkType,
    /// Where it begins in `octets`; it ends where the next one begins.
    start: usize,
}

impl FirstFrames {
    /// Has the engine craft them. Next hops are not asked for their MAC addresses, which stay zero.
    ///
    /// # Errors
    /// The sweep itself would fail in the same way.
    pub fn craft(setup: &Setup) -> Result<FirstFrames, Failure> {
        let mut first = FirstFrames::default();
        // Nobody to send to: nothing to ask the system about.
        if setup.targets.is_empty() && setup.flows.is_empty() {
            return Ok(first);
        }
        let flows = engine::preview(setup, &mut |target, path, frame| {
            first.add(target, path, frame);
        })?;
        first.obstacles = flows.iter().map(Given::obstacle).collect();
        Ok(first)
    }

    fn add(&mut self, target: TargetId, path: &PathInfo, octets: &[u8]) {
        let known = self.interfaces.iter().position(|name| *name == path.interface);
        let interface = known.unwrap_or_else(|| {
            self.interfaces.push(path.interface.clone());
            self.interfaces.len() - 1
        });
        self.by_target.insert(target, self.frames.len());
        self.frames.push(Frame { interface, link: path.link, start: self.octets.len() });
        self.octets.extend_from_slice(octets);
    }

    fn octets(&self, index: usize) -> &[u8] {
        let end = self.frames.get(index + 1).map_or(self.octets.len(), |next| next.start);
        &self.octets[self.frames[index].start..end]
    }

    /// Writes what would be sent, and through which interface, or why nothing would be.
    fn describe(
        &self,
        target: TargetId,
        obstacle: Option<Seen>,
        out: &mut impl Write,
    ) -> io::Result<()> {
        if let Some(obstacle) = obstacle {
            return write!(out, "not probed: {}", obstacle.name());
        }
        let Some(&index) = self.by_target.get(&target) else { return write!(out, "no route") };
        let Frame { interface, link, .. } = self.frames[index];
        let interface = &self.interfaces[interface];
        match parse(self.octets(index), link, Checksums::Verify) {
            Ok(packet) => write!(out, "{interface}: {}", describe(&packet)),
            Err(error) => write!(out, "{interface}: {error}"),
        }
    }

    /// Writes the frames to a capture file in the order of the sweep, each at the time after its
    /// start at which `rate_pps` would let it go.
    ///
    /// # Errors
    /// The file cannot be created or written.
    pub fn capture(&self, path: &Path, rate_pps: Option<u64>) -> Result<(), Failure> {
        let failed = |what, error| Failure::System(anyhow!("{what} {}: {error}", path.display()));
        let file = File::create(path).map_err(|error| failed("create", error))?;
        let all_ip = self.frames.iter().all(|frame| frame.link == LinkType::Ip);
        let link =
            if self.frames.is_empty() || !all_ip { LinkType::Ethernet } else { LinkType::Ip };
        let written = PcapWriter::new(BufWriter::new(file), link).and_then(|mut pcap| {
            for (index, frame) in self.frames.iter().enumerate() {
                let at = sent_at_ns(index as u64, rate_pps);
                pcap.frame_of(frame.link, at, self.octets(index))?;
            }
            pcap.flush()
        });
        written.map_err(|error| failed("write", error))
    }
}

/// Returns when the frame after `earlier` others is sent, counted from the first.
fn sent_at_ns(earlier: u64, rate_pps: Option<u64>) -> u64 {
    let at = rate_pps.map_or(0, |pps| u128::from(earlier) * 1_000_000_000 / u128::from(pps.max(1)));
    u64::try_from(at).unwrap_or(u64::MAX)
}

/// Writes the plan, then every target on a line, in the order in which they were given.
///
/// # Errors
/// `out` does not take it.
pub fn write(request: &Request, first: &FirstFrames, out: &mut impl Write) -> io::Result<()> {
    let setup = &request.setup;
    let plan = &setup.plan;
    let flows = setup.flows.len() as u64;
    let opened = setup.targets.len() as u64;
    let peers = opened + flows;
    let keepalive = &plan.keepalive;
    let probe_bytes = match plan.probe_bytes {
        ProbeBytes::Auto => "0, then 1 in the second half of the plan",
        ProbeBytes::Zero => "0",
        ProbeBytes::One => "1",
    };
    let close = match plan.close {
        Close::Rst => "RST",
        Close::Fin => "FIN",
    };
    let rate = match plan.rate_pps {
        Some(pps) => format!("{} frames/s", HumanCount(pps)),
        None => "as fast as the path takes them".to_owned(),
    };
    let source = setup.source.map_or_else(|| "by route".to_owned(), |source| source.to_string());
    let ports = &setup.source_ports;
    let interface = setup.interface.as_deref().unwrap_or("by route");
    let frames = Frames::of(plan);
    let (least, most) = durations(plan, opened, flows, &frames);

    match peers {
        1 => writeln!(out, "dry run: nothing is sent to this peer")?,
        _ => writeln!(out, "dry run: nothing is sent to these {} peers", HumanCount(peers))?,
    }
    writeln!(
        out,
        "profile      {}: idle {}, interval {}, count {}",
        request.profile,
        format_duration(keepalive.idle),
        format_duration(keepalive.interval),
        keepalive.count
    )?;
    writeln!(out, "keepalive    octets: {probe_bytes}")?;
    // Given flows are neither opened nor closed.
    let opens = opened > 0 || flows == 0;
    if opens {
        writeln!(
            out,
            "connection   SYN repeated for {}, closed with {close}",
            format_duration(plan.connect_timeout)
        )?;
    }
    writeln!(out, "rate         {rate}")?;
    if let Some(pps) = plan.rate_per_prefix_pps {
        let pps = HumanCount(pps);
        writeln!(out, "per prefix   at most {pps} frames/s to an IPv4 /24 or IPv6 /48")?;
    }
    writeln!(out, "order        random, seed {}", plan.seed)?;
    if opens {
        writeln!(
            out,
            "source       {source}, ports {}-{}, interface {interface}",
            ports.start(),
            ports.end()
        )?;
        writeln!(
            out,
            "frames       {} to a peer that answers (SYN, ACK, keepalive, {close}), up to {} to one that does not",
            frames.answering, frames.silent
        )?;
    }
    if flows > 0 {
        writeln!(
            out,
            "flows        {}: keepalives only, at most {} each; never closed",
            HumanCount(flows),
            keepalive.count
        )?;
    }
    writeln!(
        out,
        "duration     about {} if every peer answers, at most about {}",
        format_duration(least),
        format_duration(most)
    )?;
    writeln!(out)?;
    let targets = setup.targets.iter().map(|peer| (peer, None));
    let flows = setup.flows.iter().zip(&first.obstacles);
    let flows = flows.map(|(flow, obstacle)| (&flow.peer, *obstacle));
    for ((peer, obstacle), target) in targets.chain(flows).zip((0..).map(TargetId)) {
        let (name, label) = request.names.of(target);
        write!(out, "{peer}")?;
        for text in [name, label].into_iter().flatten() {
            write!(out, "  {}", shown(text))?;
        }
        write!(out, "  ")?;
        first.describe(target, obstacle, out)?;
        writeln!(out)?;
    }
    for &(target, port) in &request.unresolved {
        let (name, label) = request.names.of(target);
        write!(out, "{}", by_name(name.unwrap_or_default(), port))?;
        if let Some(label) = label {
            write!(out, "  {}", shown(label))?;
        }
        writeln!(out, "  no address")?;
    }
    Ok(())
}

/// Frames for one peer, ARP, ND and answers to what the peer sends left aside.
struct Frames {
    answering: u64,
    silent: u64,
}

impl Frames {
    fn of(plan: &Plan) -> Frames {
        // SYNs go out 0, 1, 3, 7, … seconds after the first (RFC 6298 §5.5).
        let syns = (0..u64::BITS)
            .take_while(|n| Duration::from_secs((1 << n) - 1) < plan.connect_timeout)
            .count() as u64;
        // Until the peer has acknowledged something of ours, a bare ACK goes before every probe.
        let probes = 2 * u64::from(plan.keepalive.count);
        Frames { answering: 4, silent: syns + 1 + probes + 1 }
    }
}

/// Returns how long a sweep of peers, to which connections are `opened`, and of `flows` takes if every
/// one answers at once, and if none does; to the second.
fn durations(plan: &Plan, opened: u64, flows: u64, frames: &Frames) -> (Duration, Duration) {
    let sending = |each_opened: u64, each_flow: u64| {
        let all =
            opened.saturating_mul(each_opened).saturating_add(flows.saturating_mul(each_flow));
        Duration::from_secs(plan.rate_pps.map_or(0, |pps| all.div_ceil(pps)))
    };
    let keepalive = &plan.keepalive;
    let silence = keepalive.interval.saturating_mul(keepalive.count.into());
    let connecting = if opened > 0 { plan.connect_timeout } else { Duration::ZERO };
    let least = sending(frames.answering, 1).saturating_add(keepalive.idle);
    let most = sending(frames.silent, keepalive.count.into())
        .saturating_add(connecting)
        .saturating_add(keepalive.idle)
        .saturating_add(silence);
    (least, most)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::plan::PROFILES;

    fn plan() -> Plan {
        Plan {
            keepalive: PROFILES[0].1,
            probe_bytes: ProbeBytes::Auto,
            connect_timeout: Duration::from_secs(15),
            close: Close::Rst,
            rate_pps: Some(10_000),
            rate_per_prefix_pps: None,
            seed: 1,
        }
    }

    #[test]
    fn frames_keep_to_the_rate() {
        assert_eq!(sent_at_ns(3, Some(10_000)), 300_000);
        assert_eq!(sent_at_ns(3, None), 0);
        assert_eq!(sent_at_ns(u64::MAX, Some(1)), u64::MAX);
    }

    #[test]
    fn estimates_follow_from_plan_and_rate() {
        let frames = Frames::of(&plan());
        // 4 SYNs (0, 1, 3, 7 s), an ACK, 5 × (ACK, probe), a RST.
        assert_eq!((frames.answering, frames.silent), (4, 16));
        let (least, most) = durations(&plan(), 65_536, 0, &frames);
        assert_eq!(least, Duration::from_secs(27));
        assert_eq!(most, Duration::from_secs(105 + 15 + 5));
        // Given flows are not opened: 5 keepalives each.
        let (least, most) = durations(&plan(), 0, 20_000, &frames);
        assert_eq!((least, most), (Duration::from_secs(2), Duration::from_secs(10 + 5)));
    }

    #[test]
    fn estimates_never_overflow() {
        let mut plan = plan();
        plan.connect_timeout = Duration::MAX;
        plan.keepalive.idle = Duration::MAX;
        plan.keepalive.count = u16::MAX;
        plan.rate_pps = Some(1);
        let frames = Frames::of(&plan);
        let (least, most) = durations(&plan, u64::MAX, u64::MAX, &frames);
        assert_eq!((least, most), (Duration::MAX, Duration::MAX));
        plan.rate_pps = None;
        plan.keepalive.idle = Duration::ZERO;
        assert_eq!(durations(&plan, u64::MAX, 0, &frames).0, Duration::ZERO);
    }
}
