"""Tests; folders are named *_tests so that nothing shadows a package."""
