//! A row of the demo: what is tried, what came out, and whether that can be believed.

use std::fmt;

use clap::ValueEnum;
use fdlink::Mode;
use serde::{Deserialize, Serialize, Serializer};

use super::stream::Seen;

/// The MTUs that are tried: what the world has, and the largest that a sandbox can have.
const MTUS: [u32; 2] = [1_500, 65_520];

/// Which way the data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Direction {
    /// From the host to the sandbox.
    Down,
    /// From the sandbox to the host.
    Up,
}

impl Direction {
    /// Its name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Down => "down",
            Self::Up => "up",
        }
    }
}

/// The version of IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Family {
    /// Version 4.
    #[serde(rename = "IPv4")]
    V4,
    /// Version 6.
    #[serde(rename = "IPv6")]
    V6,
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// What a row tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Trial {
    /// How frames cross the descriptor.
    #[serde(serialize_with = "by_name")]
    pub(crate) mode: Mode,
    /// The MTU of the sandbox's interface.
    pub(crate) mtu: u32,
    /// Which way the data goes.
    pub(crate) direction: Direction,
}

fn by_name<S: Serializer>(mode: &Mode, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(mode.name())
}

impl Trial {
    /// Everything there is to try, in the order of the table.
    pub(crate) fn all() -> Vec<Self> {
        let mut trials = Vec::new();
        for mode in Mode::NAMED {
            for mtu in MTUS {
                for direction in [Direction::Up, Direction::Down] {
                    trials.push(Self { mode, mtu, direction });
                }
            }
        }
        trials
    }
}

impl fmt::Display for Trial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}, MTU {}, {}", self.mode, self.mtu, self.direction.name()))
    }
}

/// What a process of the row tells the demo: a line of JSON on its standard output.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Message {
    /// The client, after each transfer.
    Client(ClientSaw),
    /// The process with the endpoint and the stack, after the client.
    Counted(Counted),
}

/// What the client in the sandbox says of one transfer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ClientSaw {
    /// Over which version of IP.
    pub(crate) family: Family,
    /// The stream.
    pub(crate) seen: Seen,
    /// Segments that its kernel sent again (tcpi_total_retrans).
    pub(crate) retransmits: u64,
}

/// What endpoint and stack counted.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Counted {
    /// Frames from the sandbox.
    pub(crate) rx_frames: u64,
    /// Their bytes.
    pub(crate) rx_bytes: u64,
    /// Visits to the kernel that brought some.
    pub(crate) rx_batches: u64,
    /// System calls to receive.
    pub(crate) rx_calls: u64,
    /// Frames lost on the way in.
    pub(crate) rx_drops: u64,
    /// Frames to the sandbox.
    pub(crate) tx_frames: u64,
    /// Their bytes.
    pub(crate) tx_bytes: u64,
    /// System calls to send.
    pub(crate) tx_calls: u64,
    /// Frames lost on the way out.
    pub(crate) tx_drops: u64,
    /// Segments that the stack sent again.
    pub(crate) tcp_retransmits: u64,
}

impl Counted {
    /// Bytes that the endpoint moved in that direction.
    pub(crate) fn bytes(&self, direction: Direction) -> u64 {
        match direction {
            Direction::Down => self.tx_bytes,
            Direction::Up => self.rx_bytes,
        }
    }
}

/// One transfer over one version of IP.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Transfer {
    /// Over which version of IP.
    pub(crate) family: Family,
    /// What arrived, and at the receiver, how fast.
    pub(crate) gbit_per_second: f64,
    /// Bytes that arrived.
    pub(crate) bytes: u64,
    /// Seconds it took.
    pub(crate) seconds: f64,
    /// Their hash.
    pub(crate) xxh3_128: String,
    /// Whether that is what was sent.
    pub(crate) verified: bool,
    /// Segments that the sandbox's kernel sent again.
    pub(crate) client_retransmits: u64,
}

/// What came out of a trial.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    /// What was tried.
    #[serde(flatten)]
    pub(crate) trial: Trial,
    /// What was moved.
    pub(crate) transfers: Vec<Transfer>,
    /// What endpoint and stack counted meanwhile.
    pub(crate) counted: Option<Counted>,
    /// Why the row failed; a row without is verified.
    pub(crate) fault: Option<String>,
}

impl Row {
    /// A row that did not come to anything.
    pub(crate) fn failed(trial: Trial, fault: impl Into<String>) -> Self {
        Self { trial, transfers: Vec::new(), counted: None, fault: Some(fault.into()) }
    }

    /// Puts together what both ends and the endpoint say, for `families`, and judges it.
    pub(crate) fn judge(
        trial: Trial,
        families: &[Family],
        served: &[(Family, Seen)],
        messages: Vec<Message>,
    ) -> Self {
        let mut row = Self { trial, transfers: Vec::new(), counted: None, fault: None };
        let mut clients = Vec::new();
        for message in messages {
            match message {
                Message::Client(client) => clients.push(client),
                Message::Counted(counted) => row.counted = Some(counted),
            }
        }
        for &family in families {
            let client = clients.iter().find(|client| client.family == family);
            let server = served.iter().find(|(served, _)| *served == family);
            match (client, server) {
                (Some(client), Some((_, server))) => row.add(client, server),
                (None, _) => row.blame(format!("{family}: the client told nothing")),
                (_, None) => row.blame(format!("{family}: the server saw nothing")),
            }
        }
        row.check_counters();
        row
    }

    /// Adds a transfer of which both ends told.
    fn add(&mut self, client: &ClientSaw, server: &Seen) {
        let (sent, received) = match self.trial.direction {
            Direction::Down => (server, &client.seen),
            Direction::Up => (&client.seen, server),
        };
        let family = client.family;
        let verified = sent.same_stream(received);
        if !verified {
            self.blame(format!(
                "{family}: {} bytes with hash {} were sent, {} with {} arrived",
                sent.bytes, sent.hash, received.bytes, received.hash
            ));
        }
        self.transfers.push(Transfer {
            family,
            gbit_per_second: received.gbit_per_second(),
            bytes: received.bytes,
            seconds: received.seconds,
            xxh3_128: received.hash.clone(),
            verified,
            client_retransmits: client.retransmits,
        });
    }

    /// Nothing arrives that the endpoint did not carry: otherwise it went another way.
    fn check_counters(&mut self) {
        let Some(counted) = &self.counted else {
            return self.blame("endpoint and stack told nothing".to_owned());
        };
        let (payload, counted) = (self.payload(), counted.bytes(self.trial.direction));
        if counted < payload {
            self.blame(format!(
                "the endpoint counted {counted} bytes, less than the {payload} that arrived"
            ));
        }
    }

    /// The first fault is what the row is remembered for; the others follow from it.
    pub(crate) fn blame(&mut self, fault: String) {
        self.fault.get_or_insert(fault);
    }

    /// Whether everything that was tried is as it should be.
    pub(crate) fn verified(&self) -> bool {
        self.fault.is_none()
    }

    /// Bytes that arrived.
    pub(crate) fn payload(&self) -> u64 {
        self.transfers.iter().map(|transfer| transfer.bytes).sum()
    }

    /// Segments sent again, by the sandbox's kernel and by the stack.
    pub(crate) fn retransmits(&self) -> u64 {
        let stack = self.counted.as_ref().map_or(0, |counted| counted.tcp_retransmits);
        self.transfers.iter().map(|transfer| transfer.client_retransmits).sum::<u64>() + stack
    }

    /// The throughput over that version of IP.
    pub(crate) fn gbit_per_second(&self, family: Family) -> Option<f64> {
        let transfer = self.transfers.iter().find(|transfer| transfer.family == family)?;
        Some(transfer.gbit_per_second)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A row as a good machine gives it.
    pub(crate) fn good(trial: Trial) -> Row {
        let seen = Seen { bytes: 3_000_000_000, hash: "ab".repeat(16), seconds: 1.2 };
        judge(trial, &seen, &seen, 4_000_000_000)
    }

    fn judge(trial: Trial, client: &Seen, server: &Seen, counted: u64) -> Row {
        let family = Family::V4;
        let client = ClientSaw { family, seen: client.clone(), retransmits: 3 };
        let counted = Counted {
            rx_frames: 70_000,
            rx_bytes: counted,
            rx_batches: 10_000,
            rx_calls: 20_000,
            tx_frames: 60_000,
            tx_bytes: counted,
            tx_calls: 30_000,
            tcp_retransmits: 4,
            ..Counted::default()
        };
        let messages = vec![Message::Client(client), Message::Counted(counted)];
        Row::judge(trial, &[family], &[(family, server.clone())], messages)
    }

    fn trial() -> Trial {
        Trial::all()[0]
    }

    #[test]
    fn every_mode_mtu_and_direction_has_a_row() {
        let all = Trial::all();
        assert_eq!(all.len(), 12);
        for (at, trial) in all.iter().enumerate() {
            assert!(!all[..at].contains(trial));
        }
    }

    #[test]
    fn a_good_row_is_verified() {
        for trial in Trial::all() {
            let row = good(trial);
            assert!(row.verified(), "{row:?}");
            assert_eq!(row.payload(), 3_000_000_000);
            assert_eq!(row.retransmits(), 7);
            assert!((row.gbit_per_second(Family::V4).unwrap() - 20.0).abs() < 1e-9);
            assert_eq!(row.gbit_per_second(Family::V6), None);
        }
    }

    #[test]
    fn another_hash_or_length_is_a_fault() {
        let sent = Seen { bytes: 10, hash: "0a".into(), seconds: 1.0 };
        for received in
            [Seen { hash: "0b".into(), ..sent.clone() }, Seen { bytes: 9, ..sent.clone() }]
        {
            let row = judge(trial(), &sent, &received, 1_000);
            assert!(row.fault.as_ref().unwrap().contains("were sent"), "{row:?}");
            assert!(!row.transfers[0].verified);
        }
    }

    #[test]
    fn counters_below_the_payload_are_a_fault() {
        let seen = Seen { bytes: 1_000, hash: "0a".into(), seconds: 1.0 };
        assert!(judge(trial(), &seen, &seen, 1_000).verified());
        let row = judge(trial(), &seen, &seen, 999);
        assert!(row.fault.unwrap().contains("counted 999 bytes"));
    }

    #[test]
    fn silence_is_a_fault() {
        let seen = (Family::V4, Seen::default());
        let row = Row::judge(trial(), &[Family::V4], &[seen], Vec::new());
        assert!(row.fault.unwrap().contains("the client told nothing"));
        let message = Message::Counted(Counted::default());
        assert!(!Row::judge(trial(), &[Family::V6], &[], vec![message]).verified());
    }

    #[test]
    fn messages_survive_the_way() {
        let seen = Seen { bytes: 1, hash: "0a".into(), seconds: 0.5 };
        let client = ClientSaw { family: Family::V6, seen, retransmits: 2 };
        let line = serde_json::to_string(&Message::Client(client)).unwrap();
        assert!(!line.contains('\n'));
        let Message::Client(client) = serde_json::from_str(&line).unwrap() else { panic!() };
        assert_eq!((client.family, client.retransmits, client.seen.bytes), (Family::V6, 2, 1));
    }
}
