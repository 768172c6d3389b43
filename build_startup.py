"""Install music_ssl_fairseq.pth beside the packages: the build command of pyproject.toml."""

from setuptools.command.build_py import build_py

# Lets fairseq find `--user-dir music_ssl_fairseq` from any folder: see hydra_plugins.
STARTUP = "music_ssl_fairseq.pth"


class BuildWithStartup(build_py):
    """Copy the .pth file; setuptools has no other way for editable installs."""

    def run(self) -> None:
        super().run()
        folder = self.build_lib
        if self.editable_mode:
            folder = self.get_finalized_command("install").install_lib
        self.copy_file(STARTUP, folder)
