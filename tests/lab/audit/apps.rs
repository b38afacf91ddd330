//! The applications whose connections are audited: lab-app, in a namespace of the lab.

use serde::Deserialize;
use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// A lab-app under way; it ends with its owner.
pub struct App {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    /// How many connections stood when it was ready.
    pub held: usize,
}

/// One of its connections, as its socket is now.
#[derive(Clone, Debug, Deserialize)]
pub struct Held {
    pub group: String,
    pub local: SocketAddr,
    pub peer: SocketAddr,
    pub cookie: u64,
    pub state: String,
    pub error: Option<String>,
    pub since_ack_ms: u32,
    pub unacknowledged: bool,
    pub corrupt: bool,
}

impl App {
    /// Starts a server in a namespace, by its full name.
    pub fn serve(namespace: &str, args: &[&str]) -> App {
        App::start(namespace, &[&["serve"], args].concat())
    }

    /// Opens groups of connections from a namespace and waits until they stand.
    pub fn connect(namespace: &str, groups: &[Value]) -> App {
        let file = tempfile::NamedTempFile::new().expect("temporary file");
        std::fs::write(file.path(), Value::from(groups).to_string()).expect("write groups");
        App::start(namespace, &["connect", "--groups", file.path().to_str().expect("path")])
    }

    fn start(namespace: &str, args: &[&str]) -> App {
        let mut child = Command::new("ip")
            .args(["netns", "exec", namespace, env!("CARGO_BIN_EXE_lab-app")])
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("lab-app starts");
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().expect("piped"));
        let mut app = App { child, input, output, held: 0 };
        let line = app.read_line();
        let held = line.strip_prefix("ready ").unwrap_or_else(|| panic!("not ready: {line:?}"));
        app.held = held.parse().expect("a number");
        app
    }

    fn read_line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("lab-app answers");
        line.trim_end().to_owned()
    }

    /// Returns its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Gives a command without waiting for its answer.
    pub fn tell(&mut self, command: &str) {
        let input = self.input.as_mut().expect("open until dropped");
        writeln!(input, "{command}").expect("lab-app listens");
    }

    /// Gives a command and returns the answer.
    pub fn ask(&mut self, command: &str) -> Value {
        self.tell(command);
        let line = self.read_line();
        serde_json::from_str(&line).unwrap_or_else(|_| panic!("{command}: {line:?}"))
    }

    /// Returns every connection that it holds.
    pub fn list(&mut self) -> Vec<Held> {
        let mut answer = self.ask("list");
        serde_json::from_value(answer["connections"].take()).expect("a list of connections")
    }
}

impl Drop for App {
    fn drop(&mut self) {
        // The end of its input is its end.
        self.input = None;
        let _ = self.child.wait();
    }
}
