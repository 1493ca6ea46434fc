"""The Faiss index: kinds, choice by measurement, search."""
