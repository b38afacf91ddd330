//! How much memory the queues may lock (`ulimit -l`): the kernel counts a UMEM against its user's.

use super::socket::Sizes;
use super::umem::FrameLayout;
use crate::io::privilege::{self, Capability};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Returns how many octets each of `queues` queues with this layout may lock, after raising the limit of
/// this process as far as it may; `u64::MAX` if nobody counts.
///
/// What else the user has locked is not known: a queue may still get less.
pub fn lockable_per_queue(queues: u32, layout: FrameLayout) -> u64 {
    // Who has CAP_IPC_LOCK is not counted (xdp_umem_account_pages).
    if privilege::require(&[Capability::CAP_IPC_LOCK]).is_ok() {
        return u64::MAX;
    }
    let wanted = u64::from(queues) * Sizes::TRIED[0].octets(layout);
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_MEMLOCK) else { return u64::MAX };
    let mut allowed = soft;
    if soft < wanted {
        // The first needs CAP_SYS_RESOURCE if it is more than `hard`.
        for limit in [wanted, hard.min(wanted)] {
            let raised = setrlimit(Resource::RLIMIT_MEMLOCK, limit, hard.max(limit));
            if limit > soft && raised.is_ok() {
                allowed = limit;
                break;
            }
        }
    }
    allowed / u64::from(queues.max(1))
}
