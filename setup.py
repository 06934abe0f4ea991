"Package metadata lives in settings.ini; edit there, not here."
import shlex
import shutil
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ini = ConfigParser(delimiters=['='])
ini.read('settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']



class WithModel(build_py):
    "The package, and in it the miniature Llama, which a checkout keeps below data/."
    def run(self):
        super().run()
        if self.editable_mode: return
        shutil.copytree('data/miniature/llama', Path(self.build_lib) / 'llmrec/miniature/llama', dirs_exist_ok=True)


setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'], keywords=cfg['keywords'],
    author=cfg['author'], author_email=cfg['author_email'], license='Apache-2.0', url=cfg['git_url'],
    packages=find_packages(include=[cfg['lib_path'], cfg['lib_path'] + '.*']), include_package_data=True,
    cmdclass={'build_py': WithModel}, python_requires='>=' + cfg['min_python'],
    install_requires=shlex.split(cfg['requirements']),
    extras_require={name: shlex.split(cfg[f'{name}_requirements']) for name in ('dev', 'index', 'tensorboard')},
    long_description=Path('README.md').read_text(encoding='utf-8'), long_description_content_type='text/markdown',
    entry_points={'console_scripts': cfg['console_scripts'].split(),
                  'nbdev': [f"{cfg['lib_path']}={cfg['lib_path']}._modidx:d"]},
)
