use super::*;
use crate::io::privilege::{Capability, MissingCapabilities};
use crate::io::route::Interface;
use crate::wire::MacAddr;

fn link(name: &str) -> Link {
    Link {
        interface: Interface {
            index: 2,
            name: name.into(),
            mac: MacAddr([2, 0, 0, 0, 0, 1]),
            mtu: 1500,
            up: true,
            enabled: true,
            carrier_losses: 0,
            is_port: false,
            loopback: false,
            has_mac: true,
            addresses: vec!["10.0.0.1/24".parse().expect("a prefix")],
        },
        driver: Some("veth".into()),
        queues: Some(2),
        xdp_features: None,
        xdp_programs: Vec::new(),
    }
}

fn seen(link: Link, is_chosen: bool) -> Seen {
    Seen { link, tcx: Ok([Vec::new(), Vec::new()]), is_chosen }
}

fn with(change: impl FnOnce(&mut Link)) -> Link {
    let mut link = link("eth1");
    change(&mut link);
    link
}

#[test]
fn interfaces_by_state() {
    // (interface, said of it unasked, said of it when it was asked for, words)
    let rows: [(Link, Status, Status, &str); 6] = [
        (link("eth1"), Status::Ok, Status::Ok, "packet path, veth, MTU 1500"),
        (with(|l| l.interface.has_mac = false), Status::Ok, Status::Ok, "raw path"),
        (with(|l| l.interface.addresses.clear()), Status::Ok, Status::Warn, "no address"),
        (with(|l| l.interface.is_port = true), Status::Ok, Status::Missing, "port of a bridge"),
        (with(|l| l.interface.up = false), Status::Warn, Status::Missing, "without carrier"),
        (
            with(|l| (l.interface.up, l.interface.enabled) = (false, false)),
            Status::Ok,
            Status::Missing,
            "switched off",
        ),
    ];
    for (link, unasked, asked, words) in rows {
        for (is_chosen, status) in [(false, unasked), (true, asked)] {
            let check = interface(&seen(link.clone(), is_chosen));
            assert_eq!(check.status, status, "{check:?}");
            assert!(check.found.contains(words), "{check:?}");
            assert_eq!(check.remedy.is_some(), status != Status::Ok, "{check:?}");
        }
    }
}

#[test]
fn programs_that_hear_first_are_told() {
    let mut seen = seen(with(|link| link.xdp_programs = vec![(Attached::Skb, 7)]), false);
    seen.tcx = Ok([vec!["police".into()], Vec::new()]);
    let check = interface(&seen);
    assert_eq!(check.status, Status::Warn);
    assert!(check.found.ends_with("XDP program 7 attached (generic), tcx ingress: police"));
}

#[test]
fn somewhere_a_sweep_must_get_out() {
    let up = || seen(link("eth1"), false);
    let lo = || seen(with(|link| link.interface.loopback = true), false);
    let off = || seen(with(|link| link.interface.up = false), false);
    assert_eq!(interfaces(&[lo(), up(), off()]).status, Status::Ok);
    assert_eq!(interfaces(&[lo(), off()]).status, Status::Warn);
    assert_eq!(interfaces(&[off()]).status, Status::Missing);
    assert_eq!(interfaces(&[]).status, Status::Missing);
}

#[test]
fn capabilities_reach_bpf_only_outside_a_user_namespace() {
    assert_eq!(capabilities(&Ok(()), Some(false)).status, Status::Ok);
    assert_eq!(capabilities(&Ok(()), Some(true)).status, Status::Warn);
    let lacking =
        MissingCapabilities { missing: vec![Capability::CAP_BPF], needed: SWEEP.to_vec() };
    let check = capabilities(&Err(lacking), Some(false));
    assert_eq!((check.status, &*check.found), (Status::Missing, "missing CAP_BPF"));
    let remedy = check.remedy.expect("a remedy");
    assert!(remedy.contains("setcap cap_net_raw,cap_net_admin,cap_bpf+ep"), "{remedy}");
}

#[test]
fn kernels_before_tcx_are_only_suspected() {
    let of = |release: &str| {
        kernel(Some(&Kernel { release: release.into(), ..Kernel::default() })).status
    };
    assert_eq!(
        [of("6.6.0"), of("7.0"), of("6.5.13"), of("5.14.0-503.el9")],
        [Status::Ok, Status::Ok, Status::Warn, Status::Warn]
    );
    assert_eq!(kernel(None).status, Status::Warn);
}

#[test]
fn tcx_is_missing_only_if_we_may_ask() {
    let refused = || {
        let reason = "EINVAL".to_owned();
        let refusal = GuardError::Query { interface: "eth1".into(), reason, remedy: "6.6".into() };
        Seen { tcx: Err(refusal), ..seen(link("eth1"), false) }
    };
    assert_eq!(tcx(&[refused()], true).status, Status::Missing);
    assert_eq!(tcx(&[refused()], false).status, Status::Warn);
    assert_eq!(tcx(&[seen(link("eth1"), false)], true).status, Status::Ok);
}

#[test]
fn other_source_ports_are_proposed_on_the_wider_side() {
    let remedy = |lo, hi| {
        let wanted = 61000..=65534;
        let found = Err(PortsError::Ephemeral { wanted: wanted.clone(), ephemeral: lo..=hi });
        let check = source_ports(&wanted, found);
        assert_eq!(check.status, Status::Missing);
        check.remedy.expect("a remedy")
    };
    assert!(remedy(10_000, 62_000).starts_with("sweep with --source-ports 1024-9999,"));
    assert!(remedy(2000, 61_500).starts_with("sweep with --source-ports 61501-65534,"));
    assert!(remedy(1024, 65_535).starts_with("narrow the ephemeral ones"));
    assert!(remedy(1, 65_535).starts_with("narrow the ephemeral ones"));
}

#[test]
fn open_files_by_need() {
    let links = vec![link("eth1"); 100];
    let status = |soft, hard| open_files(Ok((soft, hard)), &links);
    assert_eq!(status(100, 1 << 20).status, Status::Missing);
    assert!(status(100, 1 << 20).remedy.is_some_and(|text| text.starts_with("ulimit -n ")));
    assert!(status(100, 100).remedy.is_some_and(|text| text.starts_with("as root: prlimit")));
    assert_eq!(status(200, 1 << 20).status, Status::Warn);
    assert_eq!(status(20_000, 20_000).status, Status::Ok);
}

#[test]
fn conntrack_is_a_matter_of_room() {
    let table = |count| Conntrack { count, max: 1000, ..Conntrack::default() };
    assert_eq!(conntrack(None).status, Status::Ok);
    assert_eq!(conntrack(Some(table(799))).status, Status::Ok);
    let full = conntrack(Some(table(800)));
    assert_eq!(full.status, Status::Warn);
    assert!(full.remedy.is_some_and(|text| text.contains("nf_conntrack_max=2000")));
    let words = conntrack(Some(Conntrack { tcp_loose: Some(false), ..table(0) })).found;
    assert!(words.contains("tcp_loose off"), "{words}");
}

#[test]
fn what_af_xdp_can_expect() {
    let found = |link: Link| xdp_path(&seen(link, false));
    for no in [
        with(|l| l.interface.has_mac = false),
        with(|l| l.interface.up = false),
        with(|l| l.interface.is_port = true),
        with(|l| l.interface.loopback = true),
    ] {
        assert_eq!(found(no), None);
    }
    let plain = found(link("eth1")).expect("a check");
    assert_eq!((plain.status, plain.interface.as_deref()), (Status::Ok, Some("eth1")));
    assert_eq!(plain.found, "XDP modes unknown before Linux 6.3, 2 queues");
    let many = found(with(|l| l.queues = Some(64))).expect("a check");
    assert!(many.found.ends_with("64 queues, 16 of them used"), "{many:?}");
    let taken = found(with(|l| l.xdp_programs = vec![(Attached::Drv, 7)])).expect("a check");
    assert_eq!(taken.status, Status::Warn);
    assert!(taken.found.ends_with("XDP program 7 is attached already (drv)"), "{taken:?}");
    let long = found(with(|l| l.interface.mtu = 9000)).expect("a check");
    assert!(long.found.ends_with("MTU 9000") && long.status == Status::Warn, "{long:?}");
    assert!(long.remedy.expect("a remedy").contains("ip link set dev eth1 mtu 1500"));
}

#[test]
fn without_af_xdp_a_sweep_still_runs() {
    let error = IoError {
        operation: "open AF_XDP socket",
        object: "this host".into(),
        source: io::Error::from_raw_os_error(libc::EAFNOSUPPORT),
        remedy: "the kernel lacks CONFIG_XDP_SOCKETS: --io packet",
    };
    let check = xdp(Err(error));
    assert_eq!(check.status, Status::Warn);
    assert!(check.found.starts_with("no --io xdp: open AF_XDP socket on this host"), "{check:?}");
    assert_eq!(xdp(Ok(())).status, Status::Ok);
}
