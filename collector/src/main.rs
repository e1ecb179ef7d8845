//! The `vidette` program: command line, log, signals, exit code. Everything else is in the library.

use anyhow::Context;
use clap::Parser;
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};
use vidette_collector::cli::{self, Arguments, Command};
use vidette_collector::{pipeline, stop, telemetry};

fn main() -> ExitCode {
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
    runtime.block_on(async {
        let (stopper, stop) = stop::channel();
        let mut terminate = signal(SignalKind::terminate()).context("could not listen for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("could not listen for SIGINT")?;
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            tracing::info!("stopping");
            stopper.stop();
        });
        Box::pin(pipeline::run(config, stop)).await
    })
}
