//! What is deployed on a lab that is up, and removed again.

use anyhow::Result;

use super::images::{BENCH, SAMPLE, SERVICES, TOOLBOX};
use super::{Lab, bench, host, install, sample, services};

impl Lab {
    /// Installs or upgrades the chart, and restarts the laptops' daemons.
    pub fn install_kvpn(&mut self) -> Result<()> {
        install::chart(&self.layout, &mut self.state)?;
        install::daemons(&self.layout, &mut self.state)?;
        self.state.kvpn = true;
        self.state.save(&self.layout)
    }

    /// Uninstalls the chart, and stops the laptops' root daemons.
    pub fn remove_kvpn(&mut self) -> Result<()> {
        let Self { layout, state } = self;
        install::remove(layout, state)?;
        state.kvpn = false;
        state.save(layout)
    }

    /// Deploys the sample application, unless it is.
    pub fn deploy_sample(&mut self) -> Result<()> {
        let Self { layout, state } = self;
        let mut changed = false;
        for image in [SAMPLE, TOOLBOX] {
            changed |= image.build(layout)?.import(layout, state)?;
        }
        let restart = changed && state.sample;
        if restart || !state.sample {
            sample::deploy(layout, restart)?;
            state.sample = true;
            state.save(layout)?;
        }
        Ok(())
    }

    /// Removes the sample application, if it is deployed.
    pub fn remove_sample(&mut self) -> Result<()> {
        let Self { layout, state } = self;
        if state.sample {
            sample::remove(layout)?;
            state.sample = false;
            state.save(layout)?;
        }
        Ok(())
    }

    /// Deploys the servers of namespace `services`, unless they are.
    pub fn deploy_services(&mut self) -> Result<()> {
        let Self { layout, state } = self;
        // Their clients run on the laptops.
        host::install_packages()?;
        let changed = SERVICES.build(layout)?.import(layout, state)?;
        if changed || !state.services {
            services::deploy(layout)?;
            state.services = true;
            state.save(layout)?;
        }
        Ok(())
    }

    /// Deploys the server that figures are measured against.
    pub fn deploy_bench(&mut self) -> Result<()> {
        let Self { layout, state } = self;
        let changed = BENCH.build(layout)?.import(layout, state)?;
        bench::deploy(layout, changed)
    }

    /// Deploys the container whose files are measured, beside that server and without files.
    pub fn deploy_files(&mut self) -> Result<()> {
        let Self { layout, state } = self;
        TOOLBOX.build(layout)?.import(layout, state)?;
        bench::deploy_files(layout)
    }

    /// Removes both.
    pub fn remove_bench(&self) -> Result<()> {
        bench::remove(&self.layout)
    }
}
