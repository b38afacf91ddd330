//! The TCP connections that this host's kernel owns, and whose they are.
//!
//! They are read by a BPF iterator (`xdp/connections.bpf.c`): it walks the kernel's table of
//! sockets and changes nothing. TCP_REPAIR, which would tell as much, stops the connection that it
//! looks at.
//!
//! What needs which privilege (tried on Linux 6.18; kernel/bpf/syscall.c, kernel/bpf/bpf_iter.c):
//!
//! | call | needs |
//! |---|---|
//! | [`Reader::open`] | CAP_BPF and CAP_PERFMON, or CAP_SYS_ADMIN, outside any user namespace |
//! | [`Reader::read`], [`Reader::owners`] | nothing, so all can be given up before; Linux 5.15 asks for what `open` needs, unless `kernel.unprivileged_bpf_disabled` is 0 |
//! | [`own_namespace`] | nothing |
//! | [`namespaces`] | CAP_SYS_PTRACE for those that only processes of other users hold |
//! | [`Namespace::enter`] | CAP_SYS_ADMIN, in the user namespace that owns the network namespace too; nothing for one's own |
//! | [`Owners::by_proc`] | CAP_SYS_PTRACE for processes of other users |
//!
//! Nothing is pinned: all of it is gone when the process dies, however it dies.

mod connection;
mod error;
mod namespace;
mod owner;
mod process;
mod reader;
mod record;

pub use connection::{Connection, Numbers, SocketKeepalive, SocketTimestamps, TcpState};
pub use error::HostError;
pub use namespace::{Namespace, Namespaces, namespaces, own_namespace};
pub use owner::{Owner, Owners, cgroup, owners_are_in_proc};
pub use process::{comm, cookie_of, hidden_remedy, netns_of, sockets_of};
pub use reader::{Reader, Reading};
