//! smoke
#![cfg(feature = "os")]
#![allow(clippy::unwrap_used)]
#[path = "netns/mod.rs"]
mod netns;
use keepsweep::io::host::*;
use std::net::*;
#[test]
fn smoke() {
    netns::in_namespace(|| {
        let t = std::time::Instant::now();
        let reader = Reader::open().unwrap();
        println!("open {:?}", t.elapsed());
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (two, _) = listener.accept().unwrap();
            let r = reader.read(&mut |c| println!("{c:#?}")).unwrap();
            println!("{r:?}");
            let o = std::process::Command::new("ss").arg("-tinoem").output().unwrap();
            println!("{}", String::from_utf8_lossy(&o.stdout));
            drop((one, two));
        }
    });
}
