//! The classic small services on a stack of our own: what the measurements talk to.
//!
//! ```text
//! services --link packet|tap|tun --dev NAME --addr ADDRESS/PREFIX [--mac MAC] [--mode MODE] --port P
//! ```
//!
//! TCP P echoes, P+1 swallows, P+2 sends for ever, P+3 sends one byte back and closes; UDP P echoes.

use std::error::Error;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use fdlink::link::{open_packet, open_tap, open_tun};
use fdlink::{Link, LinkOptions};
use fdlink_stack::{Cidr, NicId, Stack, StackConfig, TcpListener, TcpStream, UdpSocket};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const USAGE: &str = "usage: services --link packet|tap|tun --dev NAME --addr ADDRESS/PREFIX \
                     [--mac MAC] [--mode auto|readv|recvmmsg|packet-mmap] --port P";

/// Bytes moved by one call; large enough that calls do not count.
const CHUNK: usize = 128 << 10;

struct Args {
    link: Box<dyn Link>,
    addresses: Vec<Cidr>,
    port: u16,
}

fn main() -> Result<(), Box<dyn Error>> {
    let args = parse(std::env::args().skip(1)).map_err(|error| format!("{error}\n{USAGE}"))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(args))
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Args, Box<dyn Error>> {
    let (mut link, mut dev, mut port) = (None, None, None);
    let mut addresses = Vec::new();
    let mut options = LinkOptions::new();
    while let Some(flag) = words.next() {
        let value = words.next().ok_or_else(|| format!("{flag} needs a value"))?;
        match flag.as_str() {
            "--link" => link = Some(value),
            "--dev" => dev = Some(value),
            "--addr" => addresses.push(value.parse()?),
            "--mac" => options = options.address(value.parse()?),
            "--mode" => options = options.mode(value.parse()?),
            "--port" => port = Some(value.parse()?),
            _ => return Err(format!("unknown option {flag}").into()),
        }
    }
    let dev = dev.ok_or("--dev is missing")?;
    let link = match link.as_deref() {
        Some("packet") => open_packet(&dev, 1, &options)?,
        Some("tap") => open_tap(&dev, 1, &options)?,
        Some("tun") => open_tun(&dev, 1, &options)?,
        _ => return Err("--link is packet, tap or tun".into()),
    };
    Ok(Args { link: Box::new(link), addresses, port: port.ok_or("--port is missing")? })
}

async fn serve(args: Args) -> Result<(), Box<dyn Error>> {
    eprintln!("{}", args.link.report());
    let (stack, driver) = Stack::new(StackConfig::new());
    stack.create_nic(NicId(1), args.link, &args.addresses)?;
    let any = |offset: u16| -> Result<SocketAddr, Box<dyn Error>> {
        let v6 = args.addresses.iter().all(|cidr| cidr.address().is_ipv6());
        let ip: IpAddr =
            if v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
        Ok(SocketAddr::new(ip, args.port.checked_add(offset).ok_or("the port is too high")?))
    };
    tokio::spawn(listen(TcpListener::bind(&stack, any(0)?)?, echo));
    tokio::spawn(listen(TcpListener::bind(&stack, any(1)?)?, sink));
    tokio::spawn(listen(TcpListener::bind(&stack, any(2)?)?, source));
    tokio::spawn(listen(TcpListener::bind(&stack, any(3)?)?, echo_one));
    tokio::spawn(echo_datagrams(UdpSocket::bind(&stack, any(0)?)?));
    eprintln!("ready");
    let ended = driver.run().await?;
    Err(format!("the link has ended: {ended}").into())
}

async fn listen<F>(listener: TcpListener, service: fn(TcpStream) -> F)
where
    F: Future<Output = io::Result<()>> + Send + 'static,
{
    // A connection that fails is its client's affair.
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(service(stream));
    }
}

async fn echo(mut stream: TcpStream) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    loop {
        let len = stream.read(&mut chunk).await?;
        if len == 0 {
            return stream.shutdown().await;
        }
        stream.write_all(&chunk[..len]).await?;
    }
}

async fn sink(mut stream: TcpStream) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    while stream.read(&mut chunk).await? > 0 {}
    stream.shutdown().await
}

async fn source(mut stream: TcpStream) -> io::Result<()> {
    let chunk = vec![7; CHUNK];
    loop {
        stream.write_all(&chunk).await?;
    }
}

async fn echo_one(mut stream: TcpStream) -> io::Result<()> {
    let mut byte = [0; 1];
    stream.read_exact(&mut byte).await?;
    stream.write_all(&byte).await?;
    stream.shutdown().await
}

async fn echo_datagrams(socket: UdpSocket) -> io::Result<()> {
    let mut datagram = vec![0; CHUNK];
    loop {
        let (len, from) = socket.recv_from(&mut datagram).await?;
        // No route back is the sender's affair.
        let _ = socket.send_to(&datagram[..len], from).await;
    }
}
