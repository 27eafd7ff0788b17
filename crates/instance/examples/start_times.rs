//! Starts instances of an image one after another and prints how long each took from decision to the first
//! byte from PHP, and where the time went. It is also the launcher of this crate's tests.
//!
//! `start_times IMAGE_ROOT WORK_FOLDER [STARTS [stay]]`, as root, best in namespaces of its own:
//! `unshare --pid --mount --net --fork --mount-proc`. With `stay` the last instance is left running, and so is
//! this program. `start_times build IMAGE CACHE` only builds an image.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use kopek_core::desired::Limits;
use kopek_core::{ImageName, InstanceId, SiteName};
use kopek_instance::{InstanceSpec, build_image, clean, connect, probe, start, stop};

fn main() -> ExitCode {
    if let Some(code) = kopek_instance::reexec() {
        return code;
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (Some(image), Some(work)) = (arguments.first(), arguments.get(1)) else {
        eprintln!("usage: start_times IMAGE_ROOT WORK_FOLDER [STARTS [stay]]");
        return ExitCode::from(2);
    };
    if image == "build" {
        return build(work, arguments.get(2));
    }
    let starts = arguments.get(2).and_then(|count| count.parse().ok()).unwrap_or(20);
    let stays = arguments.get(3).is_some_and(|word| word == "stay");
    match measure(Path::new(image), Path::new(work), starts, stays) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn build(image: &str, cache: Option<&String>) -> ExitCode {
    let begun = Instant::now();
    let progress = &mut |step: &str| println!("{:6.1} s  {step}", begun.elapsed().as_secs_f64());
    match ImageName::parse(image)
        .map(|name| build_image(&name, Path::new(cache.map_or(".", |cache| cache)), progress))
    {
        Ok(Ok(built)) => {
            println!("{} {} in {:.1} s", built.digest, built.bytes, begun.elapsed().as_secs_f64())
        }
        Ok(Err(error)) => eprintln!("{error}"),
        Err(error) => eprintln!("{error}"),
    }
    ExitCode::SUCCESS
}

fn measure(image: &Path, work: &Path, starts: u64, stays: bool) -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG).with_writer(std::io::stderr).init();
    let launcher = std::env::current_exe()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::fs::create_dir_all(work.join("volume"))?;
    std::fs::create_dir_all(work.join("sql"))?;
    std::fs::write(work.join("volume/index.php"), "<?php echo 'served by PHP';")?;
    let mut totals = Vec::new();
    println!("start  network  launch   probe   total  stop (ms)");
    for number in 1..=starts {
        let spec = spec(image, work, number)?;
        clean(&spec.dir)?;
        let begun = Instant::now();
        connect(&spec)?;
        let connected = begun.elapsed();
        let running = start(&spec, &launcher)?;
        let launched = begun.elapsed();
        let address = SocketAddr::from((spec.address, 80));
        runtime.block_on(probe(address, Duration::from_secs(10)))?;
        let total = begun.elapsed();
        if stays && number == starts {
            loop {
                std::thread::park();
            }
        }
        stop(&running, Duration::from_secs(5))?;
        let ms = |duration: Duration| duration.as_secs_f64() * 1000.0;
        println!(
            "{number:5}  {:7.1} {:7.1} {:7.1} {:7.1} {:5.1}",
            ms(connected),
            ms(launched - connected),
            ms(total - launched),
            ms(total),
            ms(begun.elapsed() - total)
        );
        totals.push(ms(total));
    }
    totals.sort_by(f64::total_cmp);
    println!("p50 {:.1} ms, longest {:.1} ms", totals[totals.len() / 2], totals[totals.len() - 1]);
    Ok(())
}

fn spec(image: &Path, work: &Path, number: u64) -> Result<InstanceSpec, Box<dyn std::error::Error>> {
    let id = InstanceId::new(&SiteName::parse("bench")?, number);
    Ok(InstanceSpec {
        number: 7,
        image_root: image.to_owned(),
        volume: work.join("volume"),
        sql_socket_dir: work.join("sql"),
        dir: work.join("instances").join(id.as_str()),
        netns: work.join("netns").join(id.as_str()),
        log: work.join("bench.log"),
        limits: Limits::default(),
        cgroup: Path::new("/kopek-bench").join(format!("{}-{id}", std::process::id())),
        address: Ipv4Addr::new(10, 201, 0, 7),
        resolvers: Vec::new(),
        hostname: "bench".to_owned(),
        id,
    })
}
