"""What pyproject.toml cannot say: configs/, experiments/ and plans/ lie inside the package in a wheel."""

from setuptools import find_packages, setup

SHIPPED = {"lmplay._configs": "configs", "lmplay._experiments": "experiments", "lmplay._plans": "plans"}

setup(
    packages=[*find_packages(include=["lmplay", "lmplay.*"]), *SHIPPED],
    package_dir=SHIPPED,
    package_data={"lmplay.report": ["page.html"], **{package: ["**/*"] for package in SHIPPED}},
    exclude_package_data={package: ["__pycache__/*", "**/__pycache__/*"] for package in SHIPPED},
    include_package_data=False,
)
