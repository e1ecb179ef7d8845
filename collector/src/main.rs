//! The `vidette` program: command line, log, signals, exit code. Everything else is in the library.

use anyhow::Context;
use clap::Parser;
use std::process::ExitCode;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use vidette_collector::cli::{self, Arguments, Command};
use vidette_collector::{pipeline, stop, telemetry};

/// For blocking work that is still on its way when everything else has ended.
const END_MAX: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    // Whatever is made from here on is for this user alone.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let result = match Arguments::parse().command {
        Command::Serve(options) => serve(&options),
        other => cli::run(other),
    };
    cli::exit_code(&result)
}

fn serve(options: &cli::serve::Options) -> anyhow::Result<()> {
    telemetry::log(options.log_format, &options.log)?;
    let config = options.config()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("could not start the collector's threads")?;
    let result = runtime.block_on(async {
        let (stopper, stop) = stop::channel();
        let mut terminate = signal(SignalKind::terminate()).context("could not listen for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("could not listen for SIGINT")?;
        let mut hangup = signal(SignalKind::hangup()).context("could not listen for SIGHUP")?;
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
                _ = hangup.recv() => {}
            }
            tracing::info!("stopping");
            stopper.stop();
        });
        Box::pin(pipeline::run(config, stop)).await
    });
    // A sink's thread may still wait for a name server; its cursor is safe.
    runtime.shutdown_timeout(END_MAX);
    result
}
