"""Build what setup.cfg describes, also from a tree whose links were lost: `pip install` of a zip, Windows."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class Build(build_py):
    """Add the configs and launch scripts where filip_jax/configs and filip_jax/launch are files with a link's text."""

    def run(self):
        lost = [name for name in ("configs", "launch") if not Path("filip_jax", name).is_dir()]
        if lost and self.editable_mode:
            raise SystemExit(
                f"filip_jax/{lost[0]} is no link to ../{lost[0]}, which an editable install needs: clone with git "
                "-c core.symlinks=true, or install without -e"
            )
        super().run()
        for name in lost:
            for pattern in self.package_data["filip_jax"]:
                for file in Path().glob(pattern) if pattern.startswith(name) else ():
                    copy = Path(self.build_lib, "filip_jax", file)
                    self.mkpath(str(copy.parent))
                    self.copy_file(str(file), str(copy))


setup(cmdclass={"build_py": Build})
