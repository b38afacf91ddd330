//! Opens the sockets and brings each connection on its way to its condition.
#![forbid(unsafe_code)]

use crate::connection::{Connection, Part, Ping, error_name};
use crate::group::{Condition, Group, Manner, address};
use crate::options;
use crate::stream::Stream;
use anyhow::{Context, Result};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, listen,
    setsockopt, socket, sockopt,
};
use std::ffi::OsString;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

const GREETING: [u8; 64] = [b'+'; 64];
/// What a buffer is that should soon be full.
const SMALL_BUFFER: usize = 4096;
/// Longest wait for a greeting.
const PATIENCE: Duration = Duration::from_secs(30);

fn open(family: AddressFamily) -> Result<OwnedFd> {
    Ok(socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, SockProtocol::Tcp)?)
}

/// Listens on `port`: with a socket per family, or with one for both.
pub fn listeners(port: u16, manner: Manner, mapped: bool) -> Result<Vec<TcpListener>> {
    let any: &[IpAddr] = if mapped {
        &[IpAddr::V6(Ipv6Addr::UNSPECIFIED)]
    } else {
        &[IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)]
    };
    let open = |any: IpAddr| -> Result<TcpListener> {
        let family = if any.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let fd = open(family)?;
        setsockopt(&fd, sockopt::ReuseAddr, &true)?;
        if any.is_ipv6() {
            setsockopt(&fd, sockopt::Ipv6V6Only, &!mapped)?;
        }
        match manner {
            Manner::Unread => setsockopt(&fd, sockopt::RcvBuf, &SMALL_BUFFER)?,
            Manner::Flood => setsockopt(&fd, sockopt::SndBuf, &SMALL_BUFFER)?,
            Manner::Signed => options::sign(&fd, family).context("sign (TCP_MD5SIG)")?,
            Manner::Drain | Manner::Echo | Manner::HalfClose | Manner::Stream | Manner::Brief => {}
        }
        bind(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(any, port)))?;
        listen(&fd, Backlog::MAXALLOWABLE)?;
        let listener = TcpListener::from(fd);
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    let context = || format!("listen on port {port} ({})", manner.name());
    any.iter().map(|any| open(*any).with_context(context)).collect()
}

/// Plays the server's part on a connection that was accepted.
pub fn accepted(
    mut stream: TcpStream,
    peer: SocketAddr,
    manner: Manner,
    greets: bool,
) -> Result<Connection> {
    let mut error = None;
    if greets && let Err(failure) = stream.write_all(&GREETING) {
        error = Some(error_name(&failure));
    }
    stream.set_nonblocking(true)?;
    let part = match manner {
        Manner::Drain | Manner::Signed => Part::Drain,
        Manner::Echo => Part::Echo { unsent: Vec::new() },
        Manner::HalfClose => {
            if let Err(failure) = stream.shutdown(Shutdown::Write) {
                error.get_or_insert(error_name(&failure));
            }
            Part::Drain
        }
        Manner::Unread => Part::Hold,
        Manner::Flood => Part::Fill,
        // The other end's seed is of another kind: no direction repeats another.
        Manner::Stream => {
            Part::Stream(Box::new(Stream::new(1 << 32 | u64::from(peer.port()), false)))
        }
        Manner::Brief => Part::Follow,
    };
    Ok(Connection { group: manner.index(), stream, peer, part, error })
}

/// Opens connection `index` of a group.
pub fn connect(group: &Rc<Group>, number: usize, index: usize) -> Result<Connection> {
    let manner = group.condition.manner();
    let peer = match address(group.peers, index) {
        IpAddr::V4(peer) if group.mapped => peer.to_ipv6_mapped().into(),
        peer => peer,
    };
    let family = if peer.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let fd = open(family)?;
    if group.keepalive {
        setsockopt(&fd, sockopt::KeepAlive, &true)?;
    }
    if group.mark != 0 {
        setsockopt(&fd, sockopt::Mark, &group.mark)?;
    }
    if let Some(device) = &group.device {
        setsockopt(&fd, sockopt::BindToDevice, &OsString::from(device))?;
    }
    match group.condition {
        Condition::Unread => setsockopt(&fd, sockopt::RcvBuf, &SMALL_BUFFER)?,
        Condition::ZeroWindow => setsockopt(&fd, sockopt::SndBuf, &SMALL_BUFFER)?,
        Condition::Signed => options::sign(&fd, family).context("sign (TCP_MD5SIG)")?,
        _ => {}
    }
    if let Some(from) = group.from {
        // The port is chosen by connect, which knows the whole 4-tuple.
        setsockopt(&fd, sockopt::IpBindAddressNoPort, &true)?;
        // To a whole IPv6 prefix that is local nothing may bind otherwise. (Of both families.)
        setsockopt(&fd, sockopt::IpFreebind, &true)?;
        let port = if group.from_port == 0 { 0 } else { group.from_port + index as u16 };
        let from = SocketAddr::new(address(from, index), port);
        bind(fd.as_raw_fd(), &SockaddrStorage::from(from))
            .with_context(|| format!("bind {from}"))?;
    }
    let peer = SocketAddr::new(peer, manner.port(group.port, group.greeted));
    nix::sys::socket::connect(fd.as_raw_fd(), &SockaddrStorage::from(peer))
        .with_context(|| format!("connect to {peer}"))?;
    let mut stream = TcpStream::from(fd);
    if group.greeted {
        let mut greeting = GREETING;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.read_exact(&mut greeting).with_context(|| format!("be greeted by {peer}"))?;
    }
    // Of those that never received an octet half have sent some.
    if matches!(group.condition, Condition::Idle | Condition::FinWait2 | Condition::Signed)
        && (group.greeted || index % 2 == 1)
    {
        stream.write_all(&GREETING)?;
    }
    stream.set_nonblocking(true)?;
    let seed = (number as u64) << 40 | index as u64;
    let part = match group.condition {
        Condition::Busy => Part::Ping(Box::new(Ping::new(seed))),
        Condition::ZeroWindow => Part::Fill,
        Condition::Stream => Part::Stream(Box::new(Stream::new(seed, true))),
        Condition::Brief => {
            let rng = fastrand::Rng::with_seed(seed);
            Part::Reopen { group: group.clone(), index, rng }
        }
        Condition::FinWait2 => {
            stream.shutdown(Shutdown::Write)?;
            Part::Hold
        }
        _ => Part::Hold,
    };
    Ok(Connection { group: number, stream, peer, part, error: None })
}
