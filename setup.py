"""Development installation of both Python packages; the ROS package is built by CMakeLists.txt."""

from setuptools import find_packages, setup

setup(
    name='mtl_perception',
    version='0.1.0',
    description='Segmentation, depth and normals from one camera for indoor robots.',
    license='Apache-2.0',
    python_requires='>=3.10',
    packages=find_packages(
        include=['mtl_perception', 'mtl_perception.*', 'mtl_training', 'mtl_training.*']
    ),
    package_data={
        name: ['**/*.j2', '**/*.json', '**/*.txt', '**/*.yaml']
        for name in ('mtl_perception', 'mtl_training')
    },
    entry_points={
        'console_scripts': [
            'mtl-perception = mtl_perception.cli:main',
            'mtl-training = mtl_training.cli:main',
        ]
    },
)
